"""The command line: `sightline VERB SOURCE… [options]`. It only parses, calls a verb and prints what came back.

Every command imports its verb when it is called, so that `sightline --help` needs neither torch nor numpy.
Exit codes: 0 done, 1 failed, 2 wrong usage, 3 finished but some inputs failed, 130 stopped with Ctrl-C.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from sightline.app.commands import (
    checking,
    depth,
    detecting,
    experimenting,
    learning,
    looking,
    placing,
    scoring,
    searching,
    speaking,
    teaching,
)
from sightline.errors import SightlineError

STOPPED = 130  # 128 + SIGINT, as shells have it

app = typer.Typer(
    name="sightline",
    help="Pictures and words in one space: embed, label, search, train, measure.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError
        from importlib.metadata import version as installed

        try:
            print(f"sightline {installed('sightline')}")
        except PackageNotFoundError:
            print("sightline (not installed, run from source)")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the whole traceback of an error.")] = False,
) -> None:
    """Pictures and words in one space: embed, label, search, train, measure."""
    if debug:
        os.environ["SIGHTLINE_DEBUG"] = "1"


looking.register(app)
searching.register(app)
speaking.register(app)
placing.register(app)
learning.register(app)
scoring.register(app)
teaching.register(app)
experimenting.register(app)
detecting.register(app)
depth.register(app)
checking.register(app)


def main() -> None:
    """Entry point of the console script."""
    try:
        app()
    except SightlineError as error:
        if os.environ.get("SIGHTLINE_DEBUG"):
            raise
        print(f"Error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except BrokenPipeError:  # the reader of a pipe (head, less) has gone; that is no fault
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  the interpreter flushes it on its way out
        raise SystemExit(0) from None
    except SystemExit as stop:  # typer turns Ctrl-C into its exit code, without a word
        if stop.code == STOPPED:
            print("Stopped. What was finished is kept; the same command goes on from there.", file=sys.stderr)
        raise
    except OSError as error:
        if os.environ.get("SIGHTLINE_DEBUG"):
            raise
        name = f"{error.filename}: " if error.filename else ""
        print(f"Error: {name}{(error.strerror or str(error)).lower()}.", file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
