"""The other side of chat.py: renders templates in a process of its own, which may be killed and may not grow.

Run as a file, never imported by Sightline, and it imports nothing of Sightline. One JSON object per line in
({template, values, characters}) and out ({text, spans} or {error, kind}).

Jinja's sandbox keeps a template from the interpreter, but not from looping for ever or building a giant string out of
filters; only the operating system can stop that.
"""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Callable
from datetime import datetime
from typing import Any, NoReturn

MEMORY = 512 << 20  # bytes of address space
OPEN, CLOSE = (f"\x00{secrets.token_hex(16)}{end}" for end in "<>")  # no message holds these; they mark spans


def limit_memory() -> None:
    try:
        import resource
    except ImportError:  # Windows; the limits on time and output remain
        return
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def environment() -> Any:
    """Jinja as templates expect it: blocks trimmed, loop controls, tojson without HTML escapes, generation marks."""
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):  # type: ignore[misc, unused-ignore]
        """{% generation %} … {% endgeneration %} stands around what the assistant says."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            return nodes.CallBlock(self.call_method("mark"), [], [], body).set_lineno(line)

        def mark(self, caller: Callable[[], str]) -> str:
            return f"{OPEN}{caller()}{CLOSE}"

    def tojson(value: Any, indent: int | None = None, separators: Any = None, sort_keys: bool = False, **_: Any) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent, separators=separators, sort_keys=sort_keys)

    def raise_exception(message: object) -> NoReturn:
        raise TemplateError(str(message))

    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    made.filters["tojson"] = tojson
    made.globals["raise_exception"] = raise_exception
    made.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return made


def render(jinja: Any, templates: dict[str, Any], request: dict[str, Any]) -> dict[str, Any]:
    source = request["template"]
    if source not in templates:
        templates[source] = jinja.from_string(source)
    parts, length = [], 0
    for part in templates[source].generate(**request["values"]):
        parts.append(part)
        length += len(part)
        if length > request["characters"]:
            return {"error": "", "kind": "length"}
    return without_marks("".join(parts))


def without_marks(text: str) -> dict[str, Any]:
    """The text as the model sees it, and where the marked parts are in it, as [start, end]."""
    pieces: list[str] = []
    spans: list[list[int]] = []
    length, first = 0, True
    for part in text.split(OPEN):
        said, closed, after = part.partition(CLOSE)
        if not first:
            spans.append([length, length + len(said)])
        pieces += [said, after] if closed else [part]
        length += len(said) + len(after)
        first = False
    return {"text": "".join(pieces), "spans": spans}


def main() -> None:
    jinja = environment()
    templates: dict[str, Any] = {}
    limit_memory()
    for line in sys.stdin:
        try:
            answer = render(jinja, templates, json.loads(line))
        except MemoryError:
            answer = {"error": "", "kind": "memory"}
        except RecursionError:
            answer = {"error": "it calls itself without end", "kind": "RecursionError"}
        except Exception as error:  # whatever a template does wrong is told, and the process goes on
            answer = {"error": str(error)[:300], "kind": type(error).__name__}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    sys.path[:0] = sys.argv[1:]  # where jinja2 is, if not where this interpreter looks
    main()
