"""LoRA: peft's formula, merged = unmerged, only the thin matrices learn, the saved folder is the official one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import sightline
from sightline.errors import TrainingError
from sightline.training.instruct import answer_loss
from sightline.training.lora import Adapted, LowRank, projections
from sightline.training.optimiser import own_rates
from sightline.training.recipes.llava import llava_recipe
from sightline.training.stages import hold, prepare
from sightline.training.stages import run as train
from training.seeing import SMALL, tiny_language, tiny_llava, write_conversations

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def test_projections_by_their_official_names() -> None:
    # hidden 24 in 4 heads of 6, 2 key heads; MLP of 36
    rows = projections(tiny_language())
    assert rows["blocks.0.attention.qkv"] == {"q_proj": (0, 24), "k_proj": (24, 36), "v_proj": (36, 48)}
    assert rows["blocks.1.mlp.gate_up"] == {"gate_proj": (0, 36), "up_proj": (36, 72)}
    assert {name for found in rows.values() for name in found} == set(ALL)


@pytest.mark.parametrize("targets", [(), ("q_proj", "v_proj"), ("up_proj", "o_proj")])
def test_merged_is_unmerged(targets: tuple[str, ...], tmp_path: Path) -> None:
    model = tiny_llava()
    ids = torch.randint(3, 250, (2, 11))
    plain = model(ids).logits
    adapted = Adapted(model, rank=3, alpha=6.0, targets=targets)
    assert torch.equal(adapted(ids).logits, plain)  # B is zero at first
    for module in model.language.modules():
        if isinstance(module, LowRank):
            for matrix in module.lora_b.values():
                torch.nn.init.normal_(matrix, std=0.3)
    changed = adapted(ids).logits
    assert (changed - plain).abs().max() > 0.01
    names = {n for n, p in adapted.named_parameters() if p.requires_grad and "language" in n}
    assert names and all(".lora_" in n for n in names)
    assert {n.split(".")[-1] for n in names} == set(targets or ALL)
    folder = adapted.save(tmp_path / "merged")
    assert torch.equal(adapted(ids).logits, changed)  # saving changes nothing
    again = sightline.load(folder, dtype="float32")
    assert (again(ids).logits - changed).abs().max() <= 1e-5 * changed.abs().max()
    assert (adapted.merge()(ids).logits - changed).abs().max() <= 1e-5 * changed.abs().max()
    assert model.state_dict().keys() == tiny_llava().state_dict().keys()


def test_the_formula_is_pefts() -> None:
    """W x + (alpha / r) B A x, on the rows of each projection alone."""
    base = torch.nn.Linear(5, 7)
    low = LowRank(base, {"q_proj": (0, 3), "k_proj": (3, 7)}, ["k_proj"], rank=2, alpha=8.0)
    torch.nn.init.normal_(low.lora_b["k_proj"])
    x = torch.randn(11, 5)
    expected = base(x).clone()
    expected[:, 3:] += 4.0 * (x @ low.lora_a["k_proj"].T @ low.lora_b["k_proj"].T)
    assert torch.allclose(low(x), expected, atol=1e-6)
    assert low.lora_a["k_proj"].abs().max() <= 5**-0.5 and low.lora_a["k_proj"].std() > 0.1  # peft: kaiming, a = √5


def test_the_bridge_has_a_rate_of_its_own() -> None:
    """LLaVA-1.5's LoRA: 2e-4 for the thin matrices, mm_projector_lr 2e-5."""
    plan = llava_recipe("llava-stage2-lora")
    model = hold(tiny_llava(), plan)
    peaks = own_rates([n for n, p in model.named_parameters() if p.requires_grad], plan.options)
    found = {n.split(".")[1]: plan.options.learning_rate * share for n, share in peaks.items()}
    assert found == {"bridge": pytest.approx(2e-5), "language": pytest.approx(2e-4)}


@pytest.mark.parametrize("recipe", ["llava-stage1", "llava-stage2", "llava-stage2-lora"])
def test_computing_again_changes_no_loss(recipe: str, tmp_path: Path) -> None:
    data = write_conversations(tmp_path / "data")
    losses: list[list[float]] = []
    kept: list[int] = []
    for again in ("false", "true"):
        run = prepare(data, tmp_path / again, recipe_name=recipe, model=tiny_llava(), quiet=True,
                      settings=[*SMALL, f"recompute={again}", "steps=5", "learning_rate=0.01"])  # fmt: skip
        assert run.llava.language.recompute == (again == "true")
        size = [0]
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, s=size: (s.__setitem__(0, s[0] + t.nbytes), t)[1], lambda t: t
        ):
            answer_loss(run.llava, run.lessons.batch(0))
        kept.append(size[0])
        losses.append([])
        watch = [lambda p, found=losses[-1]: found.append(p.figures["loss"])]
        train(run, tmp_path / again, callbacks=watch, quiet=True)
    assert losses[0] == pytest.approx(losses[1], rel=1e-6) and losses[0][-1] != losses[0][0]
    assert kept[1] < 0.9 * kept[0]  # weights and logits are kept in any case


def test_bad_targets() -> None:
    with pytest.raises(TrainingError, match="no projection 'query'; it has q_proj"):
        Adapted(tiny_llava(), rank=2, alpha=1.0, targets=("query",))
    with pytest.raises(TrainingError, match="lora_rank=0"):
        Adapted(tiny_llava(), rank=0, alpha=1.0)
