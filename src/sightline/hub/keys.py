"""Two-way tables between the names of weights in official files and the names in our modules.

A row is "their name": "our name". `{i}` stands for any number, a final `*` for whatever follows (weight, bias).
`{query,key,value}` on their side with `Fused(...)` on ours: those tensors are stacked along the first axis, in that
order; `Split(...)` is the other way round. `None` on our side: a tensor of old files that is dropped on purpose. One
table serves loading and saving.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Size, Tensor, cat, split

from sightline.errors import WeightsError


@dataclass(frozen=True)
class Fused:
    """Several of their tensors, stacked along axis 0, are one of ours."""

    name: str


@dataclass(frozen=True)
class Shaped:
    """The same numbers behind `ones` leading axes of length 1 in the file."""

    name: str
    ones: int


@dataclass(frozen=True)
class Turned:
    """Their matrix is the transpose of ours (parameters that the reference multiplies from the right)."""

    name: str


@dataclass(frozen=True)
class Swapped:
    """The two halves of their tensor along axis 0 stand the other way round in ours (up before gate: Molmo 2)."""

    name: str


@dataclass(frozen=True)
class Split:
    """Their one tensor is several of ours, stacked along axis 0: our names, and how many equal shares each takes."""

    names: tuple[str, ...]
    shares: tuple[int, ...]


Target = str | Fused | Shaped | Turned | Swapped | Split | None


@dataclass(frozen=True)
class Match:
    """Where one of our tensors comes from; `ours` are all of ours that come from the same place."""

    theirs: tuple[str, ...]
    target: Target
    ours: tuple[str, ...]


class KeyTable:
    """The rows, in order; the first that fits counts."""

    def __init__(self, rows: Mapping[str, Target]) -> None:
        self.rows = dict(rows)

    def under(self, theirs: str, ours: str) -> KeyTable:
        """The same table for a model that sits inside another, below these two prefixes."""
        return KeyTable({theirs + key: _renamed(target, ours) for key, target in self.rows.items()})

    def __or__(self, other: KeyTable) -> KeyTable:
        return KeyTable({**self.rows, **other.rows})

    def find(self, ours: str) -> Match:
        """Their names for one of ours; WeightsError if the table has a hole (a fault in the table, not the file)."""
        for pattern, target in self.rows.items():
            if target is None:
                continue
            for name in _names(target):
                found = _regex(name).fullmatch(ours)
                if found:
                    number, rest = found.groupdict().get("i"), found.groupdict().get("rest")
                    theirs = tuple(_filled(p, number, rest) for p in _alternatives(pattern))
                    return Match(theirs, target, tuple(_filled(n, number, rest) for n in _names(target)))
        raise WeightsError(f"the key table has no row for {ours}.")

    def drops(self, theirs: str) -> bool:
        """Whether their tensor is left out on purpose."""
        return any(target is None and _regex(key).fullmatch(theirs) for key, target in self.rows.items())

    def to_ours(self, wanted: Mapping[str, Size], tensors: Mapping[str, Tensor], model: str) -> dict[str, Tensor]:
        """Rename a file's tensors for a model that wants these names and shapes.

        Raises WeightsError that lists both sides: what the file has and the model does not know, what the model needs
        and the file lacks, and whose shape differs.
        """
        ours: dict[str, Tensor] = {}
        lacking: list[str] = []
        misshaped: list[str] = []
        used: set[str] = set()
        for name, shape in wanted.items():
            match = self.find(name)
            missing = [key for key in match.theirs if key not in tensors]
            used.update(match.theirs)
            if missing:
                lacking += missing
                continue
            tensor = _ours([tensors[key] for key in match.theirs], match, name, shape)
            if tensor.shape == shape:
                ours[name] = tensor
            else:
                misshaped.append(f"{match.theirs[0]} {list(tensor.shape)} where {list(shape)} is expected")
        unknown = [key for key in tensors if key not in used and not self.drops(key)]
        if unknown or lacking or misshaped:
            parts = [
                _listed(unknown, f"has %d tensors that {model} does not know"),
                _listed(lacking, f"lacks %d that {model} needs"),
                _listed(misshaped, "has %d of another shape"),
            ]
            raise WeightsError(
                f"the weights do not fit: the file {', '.join(p for p in parts if p)}; "
                "check that model_type and the sizes in config.json belong to these weights."
            )
        return ours

    def to_theirs(self, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename our tensors as the official file does; the inverse of `to_ours`."""
        theirs: dict[str, Tensor] = {}
        for name, tensor in ours.items():
            match = self.find(name)
            if isinstance(match.target, Split):
                parts: Iterable[Tensor] = [cat([ours[n] for n in match.ours])]
            elif isinstance(match.target, Shaped):
                parts = [tensor.reshape((1,) * match.target.ones + tensor.shape)]
            elif isinstance(match.target, Turned):
                parts = [tensor.T]
            elif isinstance(match.target, Swapped):
                parts = [cat(tensor.chunk(2)[::-1])]
            elif isinstance(match.target, Fused):
                parts = tensor.chunk(len(match.theirs))
            else:
                parts = [tensor]
            theirs.update({key: part.contiguous() for key, part in zip(match.theirs, parts, strict=True)})
        return theirs


def _ours(parts: list[Tensor], match: Match, name: str, shape: Size) -> Tensor:
    target = match.target
    if isinstance(target, Fused):
        alike = all(p.dim() > 0 and p.shape[1:] == parts[0].shape[1:] for p in parts)
        return cat(parts) if alike else parts[0]
    if isinstance(target, Turned) and parts[0].dim() == 2:
        return parts[0].T
    if isinstance(target, Swapped) and parts[0].dim():
        return cat(parts[0].chunk(2)[::-1])
    if isinstance(target, Shaped) and parts[0].numel() == shape.numel():
        return parts[0].reshape(shape)
    if isinstance(target, Split) and parts[0].dim() and parts[0].shape[0] % sum(target.shares) == 0:
        share = parts[0].shape[0] // sum(target.shares)
        return split(parts[0], [share * n for n in target.shares])[match.ours.index(name)]
    return parts[0]


def _names(target: Target) -> tuple[str, ...]:
    match target:
        case None:
            return ()
        case str():
            return (target,)
        case Split():
            return target.names
        case _:
            return (target.name,)


def _renamed(target: Target, prefix: str) -> Target:
    match target:
        case None:
            return None
        case str():
            return prefix + target
        case Fused(name):
            return Fused(prefix + name)
        case Shaped(name, ones):
            return Shaped(prefix + name, ones)
        case Turned(name):
            return Turned(prefix + name)
        case Swapped(name):
            return Swapped(prefix + name)
        case Split(names, shares):
            return Split(tuple(prefix + name for name in names), shares)


def _regex(pattern: str) -> re.Pattern[str]:
    text = re.escape(pattern).replace(r"\{i\}", r"(?P<i>\d+)")
    if text.endswith(r"\*"):
        text = text[:-2] + r"(?P<rest>[^.]+)"
    return re.compile(text)


def _filled(pattern: str, number: str | None, rest: str | None) -> str:
    filled = pattern.replace("{i}", number or "")
    return filled[:-1] + (rest or "") if filled.endswith("*") else filled


def _alternatives(pattern: str) -> list[str]:
    found = re.search(r"\{([^{}]*,[^{}]*)\}", pattern)
    if not found:
        return [pattern]
    return [pattern[: found.start()] + choice + pattern[found.end() :] for choice in found[1].split(",")]


def _listed(names: list[str], text: str) -> str:
    if not names:
        return ""
    shown = ", ".join(names[:4]) + (f", … {len(names) - 4} more" if len(names) > 4 else "")
    return f"{text % len(names)} ({shown})"
