"""How `key=value` changes a recipe: some keys are the recipe's own, the others those of its `Options`."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

from sightline.errors import UsageError
from sightline.training.options import Options, override, replace_checked


@runtime_checkable
class HasOptions(Protocol):
    """A recipe: a frozen dataclass of settings with the options of its run."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    @property
    def options(self) -> Options: ...


R = TypeVar("R", bound=HasOptions)


def changed(table: Mapping[str, R], name: str, assignments: Iterable[str] = ()) -> R:
    """The recipe of that name with `key=value` changes of its own settings and of Options.

    A run is measured in steps or in epochs, so steps=… without epochs=… takes the recipe's epochs away, and the other
    way round. Raises UsageError for an unknown recipe, key (with the nearest known ones) or value.
    """
    if name not in table:
        raise UsageError(f"There is no recipe {name!r}; the recipes are {', '.join(table)}.")
    chosen = table[name]
    own = {f.name for f in dataclasses.fields(chosen)} - {"options", "what"}
    run = {f.name for f in dataclasses.fields(Options)}
    mine: list[str] = []
    rest: list[str] = []
    for text in assignments:
        key = text.partition("=")[0]
        if key not in own | run:
            near = ", ".join(difflib.get_close_matches(key, own | run, n=3) or sorted(own | run))
            raise UsageError(f"A recipe has no setting {key!r}; did you mean {near}?")
        (mine if key in own else rest).append(text)
    said = {text.partition("=")[0] for text in rest}
    rest += ["epochs=none"] * ("steps" in said and "epochs" not in said)
    rest += ["steps=none"] * ("epochs" in said and "steps" not in said)
    return replace_checked(override(chosen, mine), {"options": override(chosen.options, rest)})
