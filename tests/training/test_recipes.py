"""The part that all tables of recipes share: reading `key=value`."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from sightline.errors import UsageError
from sightline.training.options import Options
from sightline.training.recipes.changing import changed
from sightline.training.recipes.llava import llava_recipe, scheduled


@dataclass(frozen=True, kw_only=True)
class Soup:
    what: str = ""
    salt: float = 1.0
    bowls: tuple[int, ...] = (2, 3)
    options: Options = field(default_factory=Options)


SOUPS = {
    "long": Soup(what="many steps", options=Options(steps=11)),
    "round": Soup(what="many rounds", options=Options(epochs=3.0)),
}


def test_keys_go_where_they_belong() -> None:
    soup = changed(SOUPS, "long", iter(["salt=0.5", "warmup=7", "bowls=5,7"]))
    assert soup == Soup(what="many steps", salt=0.5, bowls=(5, 7), options=Options(steps=11, warmup=7))
    assert changed(SOUPS, "long") == SOUPS["long"]


def test_steps_and_epochs_replace_one_another() -> None:
    assert changed(SOUPS, "round", ["steps=13"]).options == Options(steps=13, epochs=None)
    assert changed(SOUPS, "long", ["epochs=2"]).options == Options(steps=None, epochs=2.0)
    both = changed(SOUPS, "long", ["epochs=2", "steps=5"]).options
    assert (both.steps, both.epochs) == (5, 2.0)  # said by hand: Options lets steps count


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("thin", "salt=1", "no recipe 'thin'; the recipes are long, round"),
        ("long", "sald=1", "no setting 'sald'; did you mean salt"),
        ("long", "options=1", "no setting 'options'"),
        ("long", "what=else", "no setting 'what'"),
        ("long", "salt", "not of the form key=value"),
        ("long", "steps", "not of the form key=value"),
        ("long", "salt=much", "salt='much' is not float"),
    ],
)
def test_what_cannot_be_changed_is_said(name: str, text: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        changed(SOUPS, name, [text])


def test_a_warm_up_in_steps_replaces_llavas_share() -> None:
    by_share = scheduled(llava_recipe("llava-stage2", ["steps=100"]), 1)
    assert by_share.warmup == 3  # 0.03 of 100
    assert scheduled(llava_recipe("llava-stage2", ["steps=100", "warmup=7"]), 1).warmup == 7
    both = llava_recipe("llava-stage2", ["warmup=7", "steps=100", "warmup_share=0.05"])
    assert scheduled(both, 1).warmup == 5  # the share was asked for
