"""Where to look while answering: the head's own attention, told apart by answers, packed and in parts."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from sightline.errors import UsageError
from sightline.training import lesson_bank
from sightline.training.first_decoder import look_for_alike
from sightline.training.instruct import Instruct, answer_loss, parts
from sightline.training.labels import IGNORED, Sample, Shown
from sightline.training.lesson_bank import BankConversations, LessonBank
from sightline.training.looking import Looking, after_widest_gap, looking_tokens, run_starts, tables, watched
from sightline.training.packing import pack
from sightline.training.recipes.llava import llava_recipe, shares_of
from sightline.training.tabletop_llava import build_tabletop_llava, prepare_stage
from sightline.worlds import tabletop
from sightline.worlds.tabletop.instructions import KINDS_OF_TURNS

SMALL = ["image_size=128", "width=32", "layers=3", "heads=2", "kv_heads=2", "intermediate=24", "vocab_size=400", "batch_size=5",
         "scenes=12", "look_layer=1", "look_again=2", "cache=false", "dtype=float32", "rows=none"]  # fmt: skip


@pytest.fixture
def bank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LessonBank:
    monkeypatch.setattr(lesson_bank, "SHARD", 6)
    return LessonBank(tmp_path / "bank", count=12, size=128, quiet=True)


def test_an_answer_names_its_patches(bank: LessonBank) -> None:
    told = BankConversations(bank, turns=30, looks=True)
    for number in range(12):
        truth = next(iter(tabletop.render_many([number], "train", 128, 0, things=bank.things[number // 6])))
        conversation = told.conversation(number, 5)
        answers = [m["content"][0]["text"] for m in conversation.messages if m["role"] == "assistant"]
        assert len(answers) == len(conversation.looks)
        sight = bank.sight(number)
        for answer, things in zip(answers, conversation.looks, strict=True):
            for thing in things:
                assert thing.patches and len({int(sight.owners[patch]) for patch in thing.patches}) == 1
                shown = truth.seen[int(sight.owners[thing.patches[0]]) - 1]
                assert len(thing.patches) == int((sight.owners == sight.owners[thing.patches[0]]).sum())
                assert {shown.kind, shown.colour, shown.material, shown.size, f"{shown.kind}s"} <= set(thing.words)
            if len(things) == 1 and answer in [t.kind for t in truth.seen]:
                assert answer in things[0].words


def test_what_stands_beside_is_told_of_and_the_other_asked_about(bank: LessonBank) -> None:
    told = BankConversations(bank, turns=30, kinds=("beside", "nearest"), looks=True)
    named = nothing = 0
    for number in range(12):
        conversation = told.conversation(number, 5)
        answers = [m["content"][0]["text"] for m in conversation.messages if m["role"] == "assistant"]
        for answer, things in zip(answers, conversation.looks, strict=True):
            if answer == "nothing":
                (thing,) = things
                assert thing.part == "subject"
                nothing += 1
            else:
                one, other = things
                assert (one.part, other.part) == ("asked", "told")
                assert set(answer.split()) <= set(other.words)
                named += 1
    assert named > 5 and nothing > 0


def test_shares_of_kinds(bank: LessonBank) -> None:
    def kinds_told(**shares: float) -> set[str]:
        texts = {q: kind for n in range(12) for kind, q, *_ in bank.turns(n)}
        told = BankConversations(bank, turns=99, shares=dict.fromkeys(KINDS_OF_TURNS, 0.0) | shares)
        asked = [m for n in range(12) for m in told.conversation(n, 1).messages if m["role"] == "user"]
        return {texts[part["text"]] for m in asked for part in m["content"] if part["type"] == "text"}

    assert kinds_told(size=1.0, caption=1.0) == {"size", "caption"}
    plan = llava_recipe("tabletop-llava-further", ["shares=point all=0.5,size=1"])
    assert shares_of(plan) == {"point all": 0.5, "size": 1.0}
    for wrong in ("smell=0.5", "size=2", "size"):
        with pytest.raises(UsageError, match="KIND=SHARE"):
            shares_of(llava_recipe("tabletop-llava", [f"shares={wrong}"]))


def test_the_loss_is_of_the_heads_own_attention(bank: LessonBank, tmp_path: Path) -> None:
    plan = llava_recipe("tabletop-llava", [*SMALL, "simple_steps=0", "few_steps=0"])
    model = build_tabletop_llava(plan, bank.texts())
    look_for_alike(model.language, 0.7)  # so that it looks somewhere
    ready = prepare_stage(plan, model, bank, tmp_path, quiet=True)
    batches = (ready.lessons.batch(step) for step in range(20))
    batch = next(  # one tells of another thing, one compares two
        b for b in batches if (b["told"] != b["looks"].amax(1)).any() and b["second"].any()
    )
    looking = ready.looking
    assert looking is not None and looking.layer == 1
    image, names = model.config.image_token_index, set(looking.names)
    assert model.processor.tokenizer.token_id("<loc_500>") in names
    assert len(batch["looks"]) == int(run_starts(batch["labels"]).sum())
    with torch.no_grad(), watched(looking, model.language) as watch:
        answer_loss(model, batch)
        assert watch is not None
        loss, found = watch.loss(batch, image)
    assert not any(block.attention._forward_pre_hooks for block in model.language.blocks)
    features = model.image_features(batch["pixel_values"])[batch["pictures"]]
    vectors, _ = model._fused(batch["input_ids"], {}, features)
    out = model.language(inputs_embeds=vectors, segments=batch["segments"], output_attentions=True)
    asking, seeing, telling = (weights[:, 0].detach() for weights in out.attentions)
    asking_too, seeing_too = (weights[:, 1].detach() for weights in out.attentions[:2])
    expected, right, count, named, names_seen, others, compared = 0.0, 0, 0, 0, 0, 0, 0
    runs, number = run_starts(batch["labels"]), -1
    for row in range(len(seeing)):
        question: list[int] = []
        for column in range(1, seeing.shape[1]):
            token, segment = int(batch["input_ids"][row, column]), batch["segments"][row, column]
            if batch["labels"][row, column] == IGNORED:
                if batch["labels"][row, column - 1] != IGNORED:
                    question = []
                question += [column] * (token in names)
                continue
            if runs[row, column]:
                number += 1
                for name in question:  # each name looks for what it names
                    meant = (batch["names"][number] == batch["input_ids"][row, name]).any(-1)
                    shown = (batch["looks"][number] * meant[:, None]).amax(0)
                    if shown.any():
                        weights = seeing[row, name][
                            (batch["segments"][row] == segment) & (batch["input_ids"][row] == image)
                        ]
                        expected -= float((shown / shown.sum() * weights.log()).sum())
                        names_seen += 1
            second = batch["second"][number]
            look = batch["looks"][number][~second].amax(0)
            if not look.any():
                continue
            places = ((batch["input_ids"][row] == image) & (batch["segments"][row] == segment)).nonzero()[:, 0].tolist()
            weights = seeing[row, column - 1]
            expected -= float((look / look.sum() * weights[places].log()).sum())
            later: list[int] = []
            if second.any():
                other = batch["looks"][number][second].amax(0)
                expected -= float((other / other.sum() * seeing_too[row, column - 1][places].log()).sum())
                steps = [b - a for a, b in pairwise(question)]
                if steps:
                    cut = steps.index(max(steps)) + 1
                    later = question[cut:]
                    expected -= float(asking_too[row, column - 1][later].log().mean())
                    compared += 1
            told = batch["told"][number]
            if not torch.equal(told, batch["looks"][number].amax(0)):  # another thing than what is asked about
                expected -= float((told / told.sum() * telling[row, column - 1][places].log()).sum())
                others += 1
            likeliest = int(weights.argmax())
            right += likeliest in places and bool(look[places.index(likeliest)])
            count += 1
            if first := [name for name in question if name not in later]:
                expected -= float(asking[row, column - 1][first].log().mean())
                named += 1
    assert (
        count == len(looking_tokens(batch)[0]) > 20 and named > 10 and names_seen > 10 and others > 0 and compared > 0
    )
    assert abs(float(loss) - expected) < 1e-3 * expected and int(found) == right


def test_a_thing_without_a_patch_is_not_looked_for(bank: LessonBank, tmp_path: Path) -> None:
    """Smaller things take patches from larger ones, at times the only one."""
    plan = llava_recipe("tabletop-llava", [*SMALL, "simple_steps=0", "few_steps=0"])
    model = build_tabletop_llava(plan, bank.texts())
    ready = prepare_stage(plan, model, bank, tmp_path, quiet=True)
    batch = next(b for b in (ready.lessons.batch(step) for step in range(20)) if b["second"].any())
    batch["looks"][~batch["second"]] = 0
    batch["told"].zero_()
    with torch.no_grad(), watched(ready.looking, model.language) as watch:
        answer_loss(model, batch)
        assert watch is not None
        loss, found = watch.loss(batch, model.config.image_token_index)
    assert loss > 0 and found == 0


def test_parts_have_their_own_looks(bank: LessonBank, tmp_path: Path) -> None:
    plan = llava_recipe("tabletop-llava", [*SMALL, "row_length=none"])
    model = build_tabletop_llava(plan, bank.texts())
    batch = prepare_stage(plan, model, bank, tmp_path, quiet=True).lessons.batch(0)
    whole = Instruct(looking=Looking(1, 0.5, again=2))
    cut = Instruct(looking=Looking(1, 0.5, again=2), rows=2)
    assert len(parts(batch, 2, model.config.image_token_index)) == 3
    gradients = []
    for objective in (whole, cut):
        model.zero_grad()
        figures = objective.accumulate(model, batch, _step())
        gradients.append((figures, model.language.blocks[0].attention.qkv.weight.grad.clone()))
    (one, first), (two, second) = gradients
    assert torch.allclose(first, second, atol=1e-6) and first.abs().max() > 0
    assert abs(float(one["looks"] - two["looks"])) < 1e-4 and float(one["found"]) == float(two["found"])


def test_what_is_cut_off_is_not_looked_for() -> None:
    ids = np.arange(8, dtype=np.int32)
    labels = np.array([IGNORED, IGNORED, 2, 3, IGNORED, 5, 6, IGNORED], np.int32)
    one, two = (
        (Shown((1,), (5, 6)),),
        (Shown((2, 3), (7,), "asked"), Shown((0,), (), "told"), Shown((1,), (8,), "second")),
    )
    whole = Sample("a", ids, labels, (), (one, two))
    short = Sample("b", ids[:4], labels[:4], (), (two, one))
    assert pack([whole, short], None, 0).looks == (one, two, two)
    assert pack([short, Sample("c", ids, labels)], None, 0).looks == ()
    made = tables([two, ()], 4)
    assert made["looks"].tolist() == [[[0, 0, 1, 1], [0, 0, 0, 0], [0, 1, 0, 0]], [[0, 0, 0, 0]] * 3]
    assert made["names"].tolist() == [[[7], [-1], [8]], [[-1]] * 3]
    assert made["told"].tolist() == [[1, 1, 0, 0], [0, 0, 0, 0]]
    assert made["second"].tolist() == [[False, False, True], [False] * 3]


def test_names_of_two_things_are_told_apart_by_the_widest_gap() -> None:
    rows = ["..xx......x.", ".x..xx......", "....x.......", "............", "x..xx..x...."]
    marked = torch.tensor([[mark == "x" for mark in row] for row in rows])
    later = ["".join(".x"[int(mark)] for mark in row) for row in after_widest_gap(marked)]
    assert later == ["..........x.", "....xx......", "............", "............", "...xx..x...."]


def test_two_things_are_compared_by_two_heads(bank: LessonBank, tmp_path: Path) -> None:
    plan = llava_recipe("tabletop-llava", [*SMALL, "heads=1", "kv_heads=1"])
    with pytest.raises(UsageError, match="shows 2 heads where to look, and a layer has 1; set heads=2 or more"):
        prepare_stage(plan, build_tabletop_llava(plan, bank.texts()), bank, tmp_path, quiet=True)


def test_the_layer_has_one_before_it(bank: LessonBank, tmp_path: Path) -> None:
    model = build_tabletop_llava(llava_recipe("tabletop-llava", SMALL), bank.texts())
    for layer in (0, 3):
        plan = llava_recipe("tabletop-llava", [*SMALL, f"look_layer={layer}"])
        with pytest.raises(UsageError, match=f"look_layer={layer} names no layer with one before it; give 1 to 2"):
            prepare_stage(plan, model, bank, tmp_path, quiet=True)
    plan = llava_recipe("tabletop-llava", [*SMALL, "look_again=1"])
    with pytest.raises(UsageError, match="look_again=1 names no layer after look_layer=1; give at most 2"):
        prepare_stage(plan, model, bank, tmp_path, quiet=True)


def test_alike_needs_keys_for_every_head(bank: LessonBank) -> None:
    model = build_tabletop_llava(llava_recipe("tabletop-llava", [*SMALL, "kv_heads=1"]), bank.texts())
    with pytest.raises(UsageError, match="kv_heads = heads"):
        look_for_alike(model.language, 0.7)


def _step():  # type: ignore[no-untyped-def]
    from contextlib import nullcontext

    from sightline.training.distributed import World
    from sightline.training.objective import Step

    return Step(number=0, world=World.join(torch.device("cpu")), autocast=nullcontext, watch=True)
