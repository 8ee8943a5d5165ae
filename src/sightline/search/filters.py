"""Which pictures a query may find: by path and by date."""

from __future__ import annotations

import dataclasses
import re
from datetime import UTC, datetime

from sightline.errors import UsageError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Where:
    """glob: a path pattern; `*` and `?` also stand for `/`; a pattern that starts inside a path may begin anywhere
    after a `/` ("holiday/*.jpg" finds /home/me/holiday/a.jpg). Upper and lower case differ.

    after, before: POSIX seconds; after ≤ date < before, the date being when the picture was taken, else last changed.
    """

    glob: str | None = None
    after: float | None = None
    before: float | None = None

    def __bool__(self) -> bool:
        return self != Where()

    @property
    def path_regex(self) -> str | None:
        """The glob as a regular expression without look-around or backtracking, anchored at both ends."""
        if self.glob is None:
            return None
        if not self.glob:
            raise UsageError("the path filter is empty; give a pattern such as 'holiday/*.jpg'.")
        start = "" if self.glob.startswith(("/", "*")) else "(.*/)?"
        return f"(?s)^{start}{_translated(self.glob)}$"


def parse_date(text: str) -> float:
    """A day ("2026-03-01") or a time ("2026-03-01T12:00:00", "…+02:00") → POSIX seconds; UTC where no zone stands.

    Raises UsageError for anything else.
    """
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise UsageError(f"{text!r} is no date; write it as 2026-03-01 or 2026-03-01T12:00:00.") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _translated(pattern: str) -> str:
    parts = []
    position = 0
    while position < len(pattern):
        letter = pattern[position]
        position += 1
        if letter == "*":
            parts.append(".*")
        elif letter == "?":
            parts.append(".")
        elif letter == "[" and (end := pattern.find("]", position + 1)) > 0:
            inside = pattern[position:end]
            negated = inside[:1] in ("!", "^")
            letters = re.sub(r"([\\\[\]&~^])", r"\\\1", inside[negated:])
            parts.append(f"[{'^' if negated else ''}{letters}]")
            position = end + 1
        else:
            parts.append(re.escape(letter))
    return re.sub(r"(\.\*)+", ".*", "".join(parts))
