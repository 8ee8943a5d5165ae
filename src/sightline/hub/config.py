"""A model's numbers, frozen, under the field names of the official config.json."""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from sightline.errors import ConfigError

LARGEST = 64 << 20  # bytes of a JSON file; the largest in use, Gemma's tokenizer.json, has 34 MB
MOST_LAYERS, MOST = 1000, 1 << 24  # no network has more layers, and no width or vocabulary is longer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Base of all configs. Fields that the official file has and the model does not need travel on in `others`."""

    model_type: ClassVar[str] = ""
    others: Mapping[str, Any] = dataclasses.field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """From the parsed config.json; nested configs and lists become nested dataclasses and tuples.

        Raises ConfigError for a field of the wrong type, named with what was expected.
        """
        hints = typing.get_type_hints(cls)
        fields = {f.name for f in dataclasses.fields(cls)} - {"others"}
        known = {k: _within(cls, k, _parse(cls, k, hints[k], v)) for k, v in data.items() if k in fields}
        try:
            return cls(**known, others={k: v for k, v in data.items() if k not in fields})
        except TypeError as error:
            raise ConfigError(f"config.json does not fit {cls.__name__}: {error}.") from None

    def to_dict(self) -> dict[str, Any]:
        """The official dict again, with everything that was read."""
        own = {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self) if f.name != "others"}
        return {**self.others, **own, "model_type": self.model_type}

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; ConfigError names the file and the place when it is not one."""
    try:
        if path.stat().st_size > LARGEST:
            raise ConfigError(f"{path} is larger than {LARGEST >> 20} MB, which no such file is; fetch it again.")
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path} is missing; a checkpoint folder needs it.") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); check the folder.") from None
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, or nested without end
        raise ConfigError(f"{path} is not valid JSON ({error}); fetch the file again.") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path} holds a {type(data).__name__}, expected a JSON object.")
    return data


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write a JSON object, readable and stable."""
    path.write_text(json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def _parse(cls: type, name: str, hint: Any, value: Any) -> Any:
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    nested = next((o for o in options if isinstance(o, type) and issubclass(o, Config)), None)
    if nested is not None and isinstance(value, Mapping):
        return nested.from_dict(value)
    if isinstance(value, list):
        value = tuple(value)
    allowed = tuple(typing.get_origin(o) or o for o in options if o is not Any)
    if float in allowed and isinstance(value, int) and not isinstance(value, bool):
        return value if int in allowed else float(value)
    concrete = tuple(t for t in allowed if isinstance(t, type))
    boolean = isinstance(value, bool) and bool not in concrete
    if concrete and (boolean or not isinstance(value, concrete)):
        names = " or ".join(t.__name__ for t in concrete)
        raise ConfigError(f'config.json says "{name}": {value!r}; {cls.__name__} expects {names}.')
    return value


def _within(cls: type, name: str, value: Any) -> Any:
    """Sizes and counts a network can have; an absurd one would hang or exhaust the machine while it is built."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f'config.json says "{name}": {value}; {cls.__name__} expects a finite number.')
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, bool) or not isinstance(number, int) or name.endswith("_id"):
            continue
        least, most = (0, MOST_LAYERS) if "layers" in name else (1, MOST)
        if not least <= number <= most:
            raise ConfigError(f'config.json says "{name}": {number}; {cls.__name__} expects {least} to {most}.')
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, Config):
        return value.to_dict()
    return list(value) if isinstance(value, tuple) else value
