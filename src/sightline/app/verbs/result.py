"""What verbs return: dataclasses that turn into plain JSON."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class Failure:
    """An input that was left out, and one sentence why. The rest of the job was done."""

    source: str
    reason: str


@dataclasses.dataclass(kw_only=True)
class Result:
    """Base of all results. `failed` lists what was left out; the command line then exits with 3."""

    failed: list[Failure] = dataclasses.field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """JSON values only: paths become text, arrays lists, numbers that are not finite None."""
        return {f.name: plain(getattr(self, f.name)) for f in dataclasses.fields(self)}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), ensure_ascii=False)

    def records(self) -> list[dict[str, Any]]:
        """One object per line of `--json`; a verb with many inputs gives one per input."""
        return [self.to_dict()]


def plain(value: Any) -> Any:
    """The value in the types that JSON has."""
    if hasattr(value, "to_dict"):
        return plain(value.to_dict())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [plain(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # numpy arrays and scalars, tensors
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
