"""Key tables: two-way, complete, and loud about what does not fit."""

from __future__ import annotations

import pytest
import torch

from sightline.errors import WeightsError
from sightline.hub import Fused, KeyTable, Shaped, Split, Turned

TABLE = KeyTable(
    {
        "their.{i}.{q,k,v}.*": Fused("ours.{i}.qkv.*"),
        "joint_*": Split(("ours.query.*", "ours.rest.*"), (1, 2)),
        "probe": Shaped("ours.probe", ones=2),
        "matrix": Turned("ours.matrix"),
        "plain.*": "ours.plain.*",
        "old.buffer": None,
    }
)


def theirs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "their.0.q.weight": (3, 5), "their.0.k.weight": (3, 5), "their.0.v.weight": (3, 5),
        "their.11.q.bias": (2,), "their.11.k.bias": (3,), "their.11.v.bias": (3,),
        "joint_weight": (9, 7), "joint_bias": (9,), "probe": (1, 1, 5), "matrix": (5, 3), "plain.weight": (2,),
    }  # fmt: skip
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def wanted() -> dict[str, torch.Size]:
    shapes = {
        "ours.0.qkv.weight": (9, 5), "ours.11.qkv.bias": (8,), "ours.query.weight": (3, 7), "ours.rest.weight": (6, 7),
        "ours.query.bias": (3,), "ours.rest.bias": (6,), "ours.probe": (5,), "ours.matrix": (3, 5),
        "ours.plain.weight": (2,),
    }  # fmt: skip
    return {name: torch.Size(shape) for name, shape in shapes.items()}


def test_there():
    file = theirs()
    ours = TABLE.to_ours(wanted(), {**file, "old.buffer": torch.zeros(3)}, "Toy")
    assert torch.equal(ours["ours.0.qkv.weight"], torch.cat([file[f"their.0.{x}.weight"] for x in "qkv"]))
    assert torch.equal(ours["ours.rest.weight"], file["joint_weight"][3:])
    assert torch.equal(ours["ours.matrix"], file["matrix"].T)


def test_there_and_back():
    file = {k: v for k, v in theirs().items() if not k.startswith("their.11")}  # unequal parts cannot be cut again
    names = {k: v for k, v in wanted().items() if k != "ours.11.qkv.bias"}
    back = TABLE.to_theirs(TABLE.to_ours(names, file, "Toy"))
    assert set(back) == set(file)
    assert all(torch.equal(back[k], file[k]) and back[k].is_contiguous() for k in file)


def test_both_sides_are_listed():
    file = theirs()
    file["stranger.weight"] = torch.zeros(1)
    del file["their.0.k.weight"], file["joint_bias"]
    file["plain.weight"] = torch.zeros(3)
    with pytest.raises(WeightsError) as caught:
        TABLE.to_ours(wanted(), file, "Toy")
    text = str(caught.value)
    assert "1 tensors that Toy does not know (stranger.weight)" in text
    assert "lacks 3 that Toy needs (their.0.k.weight, joint_bias, joint_bias)" in text or "joint_bias" in text
    assert "plain.weight [3] where [2] is expected" in text


@pytest.mark.parametrize("name", ["their.0.q.weight", "joint_weight", "probe", "matrix"])
@pytest.mark.parametrize("shape", [(), (2,), (4, 5), (2, 2, 2)])
def test_any_other_shape_is_named(name, shape):
    with pytest.raises(WeightsError, match=name.replace(".", r"\.")):
        TABLE.to_ours(wanted(), {**theirs(), name: torch.zeros(shape)}, "Toy")


def test_a_hole_in_the_table_is_our_fault():
    with pytest.raises(WeightsError, match=r"no row for ours\.unheard"):
        TABLE.find("ours.unheard")


def test_under_a_prefix():
    table = TABLE.under("model.", "tower.")
    assert table.find("tower.3.qkv.weight".replace("tower.", "tower.ours.")).theirs[0] == "model.their.3.q.weight"
    assert table.find("tower.ours.rest.bias").theirs == ("model.joint_bias",)
    assert table.drops("model.old.buffer") and not table.drops("old.buffer")


def test_what_a_pattern_matches():
    """A number is digits; a star is one last part."""
    table = KeyTable({"a.{i}.*": "b.{i}.*"})
    assert table.find("b.07.weight").theirs == ("a.07.weight",)
    for name in ("b.x.weight", "b.1.weight.more", "bb.1.weight", "bX1.weight"):
        with pytest.raises(WeightsError):
            table.find(name)
