"""Commands that ask: ask, caption, chat."""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sightline.app.options import SPEAKS, BatchSize, Device, Dtype, Json, Model, Sources
from sightline.app.output import PARTLY, Meter, note, report_failures, table, write
from sightline.errors import SightlineError, UsageError

if TYPE_CHECKING:
    from sightline.app.verbs.asking import Answers, Asked
    from sightline.pipelines import Answer

Longest = Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest answer.")]
Temperature = Annotated[float, typer.Option(min=0.0, help="0: the likeliest word each time; above 0 words are drawn.")]
TopP = Annotated[float, typer.Option("--top-p", help="Draw only among the likeliest words of this much probability.")]
Seed = Annotated[int, typer.Option(help="Of the draws.")]
Beams = Annotated[int, typer.Option("--num-beams", min=1, help="Beam search with so many beams.")]
Writes = Annotated[
    str,
    typer.Option(
        "--engine", help="auto, or openvino-int8: large models on a CPU write faster; takes seconds to prepare."
    ),
]
Lines = Annotated[
    Path | None,
    typer.Option(
        "--out", "-o", help="A file of JSON lines, written as answers come; the same command goes on with it."
    ),
]
Calibrate = Annotated[
    bool, typer.Option("--calibrate/--no-calibrate", help="Apply the model's calibration.json, where there is one.")
]


def register(app: typer.Typer) -> None:
    app.command("ask")(ask)
    app.command("caption")(caption)
    app.command("chat")(chat)


def ask(
    words: Annotated[
        list[str], typer.Argument(metavar='PICTURE... "QUESTION"', help="Files, folders or globs, then the question.")
    ],
    question: Annotated[
        list[str] | None, typer.Option("--question", "-q", help="Another question (may be repeated).")
    ] = None,
    choices: Annotated[
        list[str] | None, typer.Option("--choices", "-c", help='Answers to choose among, by commas: "yes,no"; @FILE.')
    ] = None,
    together: Annotated[bool, typer.Option("--together", help="One question about all pictures at once.")] = False,
    example: Annotated[
        list[str] | None,
        typer.Option(
            "--example", metavar="PARTS", help='Shown before the question: picture=a.jpg,answer="two"[,question=…].'
        ),
    ] = None,
    model: Model = SPEAKS,
    max_new_tokens: Longest = 128,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    seed: Seed = 0,
    num_beams: Beams = 1,
    calibrate: Calibrate = True,
    device: Device = "auto",
    dtype: Dtype = "auto",
    engine: Writes = "auto",
    batch_size: BatchSize = 8,
    out: Lines = None,
    as_json: Json = False,
) -> None:
    """Ask about pictures. Every picture is asked every question, and read once."""
    from sightline.app.commands.looking import split_labels
    from sightline.app.verbs.asking import ask as run
    from sightline.pipelines.examples import Example

    pictures, questions = split_words(words, question or [])
    quiet = out is not None
    aloud = Aloud() if not quiet and not as_json else None
    done = run(
        pictures, questions, model=model, choices=split_labels(choices), together=together,
        examples=[Example.parse(text) for text in example or ()], out=out,
        max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed, num_beams=num_beams,
        calibrate=calibrate, device=device, dtype=dtype, engine=engine, batch_size=batch_size,
        on_text=aloud, on_answer=None if quiet and not as_json else _printer(as_json, "answer", len(questions) > 1, aloud),
        progress=Meter("answers") if quiet else None,
    )  # fmt: skip
    _finish(done, as_json, "answers")


def caption(
    sources: Sources,
    prompt: Annotated[str | None, typer.Option(help="What the model is asked to do.")] = None,
    model: Model = SPEAKS,
    max_new_tokens: Longest = 128,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    seed: Seed = 0,
    num_beams: Beams = 1,
    device: Device = "auto",
    dtype: Dtype = "auto",
    engine: Writes = "auto",
    batch_size: BatchSize = 8,
    out: Lines = None,
    as_json: Json = False,
) -> None:
    """Describe pictures. With --out the captions stream into a file; stop at any moment, the same command goes on."""
    from sightline.app.verbs.asking import DESCRIBE
    from sightline.app.verbs.asking import caption as run

    quiet = out is not None
    done = run(
        sources, model=model, prompt=DESCRIBE if prompt is None else prompt, out=out, max_new_tokens=max_new_tokens,
        temperature=temperature, top_p=top_p, seed=seed, num_beams=num_beams, device=device, dtype=dtype,
        engine=engine, batch_size=batch_size, on_answer=None if quiet and not as_json else _printer(as_json, "caption"),
        progress=Meter("captions") if quiet else None,
    )  # fmt: skip
    _finish(done, as_json, "captions")


def chat(
    pictures: Annotated[list[str], typer.Argument(metavar="PICTURE...", help="A picture; several are seen together.")],
    model: Model = SPEAKS,
    max_new_tokens: Longest = 512,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    seed: Seed = 0,
    calibrate: Calibrate = True,
    device: Device = "auto",
    dtype: Dtype = "auto",
    engine: Writes = "auto",
) -> None:
    """Talk about a picture. Ctrl-C stops an answer, Ctrl-D leaves."""
    from sightline.app.verbs.asking import chat as run
    from sightline.models.language.generate import Generation

    options = Generation(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed)
    conversation = run(pictures, model=model, calibrate=calibrate, device=device, dtype=dtype, engine=engine)
    live = sys.stdin.isatty()
    if live:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  lines can be edited and called back
        note("Ask about the picture. Ctrl-C stops an answer, Ctrl-D leaves.")
    while True:
        try:
            question = _line("> " if live else "")
            if question is None:
                write("") if live else None
                return
            if question.strip():
                answer = conversation.say(question, options=options, on_text=Aloud())
                write("")
                note(_details(answer)) if live or answer.flags else None
        except KeyboardInterrupt:
            write("")
            note("stopped; what was said stays. Ctrl-D leaves.")
        except SightlineError as error:
            note(f"Error: {error}")


def _line(prompt: str) -> str | None:
    """A line from the terminal, None at its end."""
    try:
        return input(prompt)
    except EOFError:
        time.sleep(0.05)  # input() may take Ctrl-C for an end; the KeyboardInterrupt then comes here
        return None


def split_words(words: list[str], more: list[str], what: str = "question") -> tuple[list[str], list[str]]:
    """Pictures and questions (or what else `what` says). The last word is the question, unless an option gave one and
    the word is there as a file."""
    last_is_there = Path(words[-1]).exists() if len(words[-1]) < 1000 and "\0" not in words[-1] else False
    if more and (last_is_there or len(words) == 1):
        return words, more
    if last_is_there:
        example = "what is this?" if what == "question" else "the red mug"
        raise UsageError(f'{words[-1]} is a picture and no {what} follows; end with one: "{example}".')
    if len(words) == 1:
        raise UsageError(f"{words[0]!r} is taken for the {what}, and there is no picture; name one before it.")
    return words[:-1], [words[-1], *more]


class Aloud:
    """Prints words as they come; `spoke` says whether any did."""

    spoke = False

    def __call__(self, text: str) -> None:
        self.spoke = True
        encoding = sys.stdout.encoding or "utf-8"
        sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
        sys.stdout.flush()


def _printer(as_json: bool, what: str, several: bool = False, aloud: Aloud | None = None) -> Any:
    """Prints each answer when it is there: a JSON line, or for people."""
    import json

    from sightline.pipelines.journal import line_of

    def show(asked: Asked) -> None:
        if as_json:
            write(json.dumps(line_of(asked.picture, asked.question, asked.answer, what), ensure_ascii=False))
            return
        if aloud is not None and aloud.spoke:
            write("")
            note(f"({_details(asked.answer)})")
            return
        name = asked.picture if isinstance(asked.picture, str) else ", ".join(asked.picture)
        head = f"{name}  {asked.question}" if several else name
        write(f"{head}\n  {asked.answer.text}\n  ({_details(asked.answer)})")
        if asked.answer.choices:
            rows = [(f"  {c.text}", f"{100 * c.probability:.1f} %", f"{c.score:.3f}") for c in asked.answer.choices]
            write(table(rows, ("  choice", "probability", "log p per token"), right=(1, 2)))

    return show


def _details(answer: Answer) -> str:
    sure = f"{100 * answer.confidence:.0f} % sure" + (", calibrated" if answer.calibrated else "")
    sure = "how sure is not known" if answer.confidence != answer.confidence else sure
    parts = [sure, f"{answer.tokens} tokens", f"{answer.seconds:.2f} s", *answer.flags]
    return " · ".join(parts)


def _finish(done: Answers, as_json: bool, what: str) -> None:
    """What was printed while it came is not printed again; failures are, and exit with 3."""
    import json

    if as_json:
        for failure in done.failed:
            write(json.dumps({"picture": failure.source, "error": failure.reason}, ensure_ascii=False))
    elif done.file is not None:
        there = f", {done.kept} of them were there already" if done.kept else ""
        write(f"{len(done.answers)} {what} in {done.file}{there}")
    if done.failed:
        report_failures(done.failed, everything=as_json)
        raise typer.Exit(PARTLY)
