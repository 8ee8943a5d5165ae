"""Learning to answer: the loss by hand and as transformers has it, packed = alone, parts = whole, resume, stages."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers

import sightline
from sightline.errors import DataError, TrainingError, UsageError
from sightline.training import Options, Progress, features, fit
from sightline.training.features import CachedFeatures, PictureTensors
from sightline.training.instruct import Instruct, answer_loss
from sightline.training.labels import IGNORED
from sightline.training.lessons import Lessons
from sightline.training.objective import Step
from sightline.training.recipes.llava import llava_recipe
from sightline.training.stages import make_ready, prepare, show, train_llava
from training.seeing import SMALL, tiny_language, tiny_llava, tiny_tower, write_conversations


def step() -> Step:
    from contextlib import nullcontext

    from sightline.training.distributed import World

    return Step(number=0, world=World(), autocast=nullcontext, watch=True)


def ready(folder: Path, *settings: str, recipe: str = "llava-stage2", **more: Any) -> Any:
    data = folder / "data" / "conversations.json"
    if not data.exists():
        write_conversations(folder / "data")
    return prepare(data, folder / "out", recipe_name=recipe, settings=[*SMALL, *settings],
                   model=more.pop("model", None) or tiny_llava(**more), quiet=True)  # fmt: skip


def gradients(model: Any) -> dict[str, torch.Tensor]:
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor], tolerance: float = 2e-5) -> None:
    assert one.keys() == two.keys() and one
    for name in one:
        scale = one[name].abs().max().clamp(min=1e-4)
        assert (one[name] - two[name]).abs().max() <= tolerance * scale, name


def test_the_loss_is_the_mean_over_learned_tokens_of_the_batch(tmp_path: Path) -> None:
    run = ready(tmp_path, "row_length=160")
    batch = run.lessons.batch(0)
    figures = run.objective.accumulate(run.model, batch, step())
    assert (batch["segments"].max(1).values > 0).any()  # rows are shared
    # By the model's own forward pass, one sample at a time, with every logit.
    total, count = 0.0, 0
    pictures = run.lessons.pictures
    for number in run.lessons.curriculum.numbers(0).tolist():
        sample = run.lessons.sample(number, 0)
        ids, labels = (torch.from_numpy(a).long()[None] for a in (sample.ids, sample.labels))
        pixels = PictureTensors(run.lessons.data.picture_names, run.lessons.data.read,
                                run.model.processor.pictures).pixels(sample.pictures)  # fmt: skip
        logits = run.model(ids, pixels).logits
        total += float(F.cross_entropy(logits[0, :-1], labels[0, 1:], ignore_index=IGNORED, reduction="sum"))
        count += int((labels != IGNORED).sum())
    assert isinstance(pictures, CachedFeatures)
    assert float(figures["loss"]) == pytest.approx(total / count, rel=1e-5)
    assert float(figures["learned_tokens"]) == count


def test_packed_is_alone_and_parts_are_the_whole(tmp_path: Path) -> None:
    found = []
    for settings in (["row_length=none"], ["row_length=0"], ["row_length=160"], ["row_length=0", "rows=1"],
                     ["row_length=none", "rows=3"], ["row_length=90", "cache=false", "rows=1"]):  # fmt: skip
        run = ready(tmp_path, *settings)
        figures = run.objective.accumulate(run.model, run.lessons.batch(1), step())
        found.append((settings, float(figures["loss"]), gradients(run.model)))
    for settings, loss, grads in found[1:]:
        assert loss == pytest.approx(found[0][1], rel=1e-5), settings
        same(found[0][2], grads)


def test_what_each_stage_teaches(tmp_path: Path) -> None:
    first = ready(tmp_path, recipe="llava-stage1")
    names = {n.split(".")[0] for n, p in first.model.named_parameters() if p.requires_grad}
    assert names == {"bridge"} and first.lessons.encoder.template.__class__.__name__ == "Plain"
    second = ready(tmp_path)
    assert {n.split(".")[0] for n, p in second.model.named_parameters() if p.requires_grad} == {"bridge", "language"}


def test_stage_one_moves_the_bridge_alone(tmp_path: Path) -> None:
    data = write_conversations(tmp_path / "data")
    model = tiny_llava()
    before = {n: p.clone() for n, p in model.state_dict().items()}
    done = train_llava(data, tmp_path / "out", recipe_name="llava-stage1", settings=SMALL, model=model, quiet=True)
    for name, now in done.model.state_dict().items():
        assert torch.equal(now, before[name]) != name.startswith("bridge."), name


def test_transformers_computes_the_same_losses(tmp_path: Path) -> None:
    """20 steps of stage 2 with plain AdamW on both sides, one sample a row, in float32."""
    run = ready(tmp_path, "row_length=none", "batch_size=3")
    folder = run.model.save(tmp_path / "official")
    theirs = transformers.LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    theirs.requires_grad_(True)
    theirs.model.vision_tower.requires_grad_(False)
    how = {"lr": 1e-2, "betas": (0.9, 0.999), "weight_decay": 0.0}
    ours_by = torch.optim.AdamW([p for p in run.model.parameters() if p.requires_grad], **how)
    theirs_by = torch.optim.AdamW([p for p in theirs.parameters() if p.requires_grad], **how)
    seen = PictureTensors(run.lessons.data.picture_names, run.lessons.data.read, run.model.processor.pictures)
    for number in range(20):
        batch = run.lessons.batch(number)
        ours_by.zero_grad()
        ours = float(run.objective.accumulate(run.model, batch, step())["loss"])
        ours_by.step()
        samples = [run.lessons.sample(n, 0) for n in run.lessons.curriculum.numbers(number).tolist()]
        samples.sort(key=len)  # as the batch
        pixels = seen.pixels([p for s in samples for p in s.pictures])
        mask = (batch["segments"] >= 0).long()
        logits = theirs(input_ids=batch["input_ids"], pixel_values=pixels, attention_mask=mask).logits
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=IGNORED)
        theirs_by.zero_grad()
        loss.backward()
        theirs_by.step()
        assert ours == pytest.approx(float(loss.detach()), abs=1e-4), number
    assert ours < 2.5


def test_a_resumed_run_ends_in_the_same_bits(tmp_path: Path) -> None:
    data = write_conversations(tmp_path / "data")

    class Stop(Exception):
        pass

    def stop(progress: Progress) -> None:
        if progress.step == 5:
            raise Stop

    def train(out: str, **more: Any) -> Any:
        return train_llava(data, tmp_path / out, settings=[*SMALL, "lora_rank=2", "ema=0.9"], model=tiny_llava(),
                           quiet=True, **more).model  # fmt: skip

    straight = train("straight")
    with pytest.raises(Stop):
        train("stopped", callbacks=[stop])
    again = train("stopped")
    assert all(torch.equal(a, b) for a, b in zip(straight.state_dict().values(), again.state_dict().values(),
                                                 strict=True))  # fmt: skip
    assert straight.state_dict().keys() == tiny_llava().state_dict().keys()  # merged


def test_two_ranks_are_one(tmp_path: Path) -> None:
    """The gradients of two shares, each divided by the learned tokens of both, add up to the whole batch's."""
    run = ready(tmp_path)
    run.objective.accumulate(run.model, run.lessons.batch(0), step())
    whole = gradients(run.model)
    count = (run.lessons.batch(0)["labels"][:, 1:] != IGNORED).sum()
    for rank in (0, 1):
        loss, _ = answer_loss(run.model, run.lessons.batch(0, rank, 2))
        (loss / count).backward()
    same(whole, gradients(run.model))


def test_it_learns_by_heart(tmp_path: Path) -> None:
    settings = ["steps=150", "learning_rate=0.01", "warmup=5", "log_every=50", "batch_size=13", "checkpoint_every=500"]
    run = ready(tmp_path, *settings)
    done = fit(run.model, run.objective, run.lessons, run.plan.options, tmp_path / "out", quiet=True)
    assert done.figures["loss"] < 0.05 and done.figures["accuracy"] == 1
    assert {"learned_tokens", "padding"} <= set(done.figures)
    asked = [[{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
             for question in ("Which one is it?", "What colour is the square?")]  # fmt: skip
    from sightline.models.language.generate import Generation, respond

    model = sightline.load(done.folder, dtype="float32")
    pictures = [tmp_path / "data" / "pictures" / f"{name}.png" for name in ("green", "pink")]
    inputs = model.processor.chat(asked, [sightline.read_picture(p) for p in pictures])
    vectors, mask = model.embed(inputs)
    end = model.processor.tokenizer.token_id("</s>")
    answers = respond(model.language, inputs_embeds=vectors, attention_mask=mask,
                      options=Generation(max_new_tokens=8, stop=(end,)))  # fmt: skip
    said = [model.processor.tokenizer.decode(tokens).strip() for tokens in answers.tokens]
    assert "green" in said[0] and "pink" in said[1]


@pytest.mark.parametrize("bridge", ["linear", "pixel_shuffle", "qformer"])
def test_any_bridge(tmp_path: Path, bridge: str) -> None:
    from sightline.models.bridges import BridgeConfig
    from sightline.training.assembling import assemble

    kind: Any = (
        BridgeConfig(kind="qformer", hidden=12, num_layers=2, heads=2, queries=3) if bridge == "qformer" else bridge
    )
    if isinstance(kind, str):
        model = assemble(tiny_tower(), tiny_language(), bridge=kind)
        run = ready(tmp_path, model=model)
        figures = run.objective.accumulate(run.model, run.lessons.batch(0), step())
        assert torch.isfinite(figures["loss"])
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.bridge.parameters())


def test_features_go_on_where_they_were_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = ready(tmp_path).lessons.pictures
    monkeypatch.setattr(features, "CHUNK", 2)
    monkeypatch.setattr(features, "FLUSH", 1)
    run = ready(tmp_path, "cache=false")
    seen, asked = run.lessons.pictures, []

    def pixels(numbers: Any) -> torch.Tensor:
        if len(asked) == 2:
            asked.append("stopped")
            raise KeyboardInterrupt
        asked.append(list(numbers))
        return PictureTensors.pixels(seen, numbers)

    monkeypatch.setattr(seen, "pixels", pixels)
    for _ in range(2):
        with contextlib.suppress(KeyboardInterrupt):
            kept = CachedFeatures(run.llava, seen, tmp_path / "c", device=torch.device("cpu"), whole=True, quiet=True)
    assert asked == [[0, 1], [2, 3], "stopped", [4, 5], [6]]
    assert torch.allclose(kept.get(range(7)), whole.get(range(7)), atol=1e-5)


def test_features_are_computed_once(tmp_path: Path) -> None:
    run = ready(tmp_path)
    kept = run.lessons.pictures
    assert kept.tokens.shape == (7, 16, 20) and kept.tokens.dtype.name == "float32"
    stamp = kept.file.stat().st_mtime_ns
    again = ready(tmp_path, recipe="llava-stage1")
    assert again.lessons.pictures.file == kept.file and kept.file.stat().st_mtime_ns == stamp


def test_bad_rows_are_problems_and_the_rest_is_learned(tmp_path: Path) -> None:
    data = write_conversations(tmp_path / "data")
    rows = json.loads(data.read_text())
    good = rows[0]
    (tmp_path / "data" / "pictures" / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n junk")
    rows += [
        {**good, "image": "pictures/none.png"}, {**good, "image": "pictures/torn.png"}, {**good, "conversations": []},
        "text", {**good, "conversations": good["conversations"][::-1]}, {**good, "image": 3},
        {**good, "conversations": [{"from": "human", "value": "<image><image> a"}, {"from": "gpt", "value": "b"}]},
        {**good, "conversations": [{"from": "human", "value": "<image> a"}, {"from": "gpt", "value": "  "}]},
        {**good, "conversations": [{"from": "human", "value": "<image> </s>"}, {"from": "gpt", "value": "b"}]},
    ]  # fmt: skip
    data.write_text(json.dumps(rows))
    done = train_llava(data, tmp_path / "out", settings=SMALL, model=tiny_llava(), quiet=True)
    assert done.steps == 6
    problems = (tmp_path / "out" / "problems.txt").read_text().splitlines()
    assert len(problems) == 9
    for line, word in zip(sorted(problems), ["entry 13", "entry 14", "entry 15"], strict=False):
        assert line.startswith(f"conversations.json, {word}")


def test_wrong_calls(tmp_path: Path) -> None:
    data = write_conversations(tmp_path / "data")
    with pytest.raises(UsageError, match="--vision and --language"):
        train_llava(data, tmp_path / "out")
    with pytest.raises(UsageError, match="no recipe 'llava'"):
        train_llava(data, tmp_path / "out", recipe_name="llava", model=tiny_llava())
    with pytest.raises(UsageError, match="no setting 'lora'"):
        train_llava(data, tmp_path / "out", settings=["lora=3"], model=tiny_llava())
    with pytest.raises(UsageError, match="learns='all' is unknown"):
        llava_recipe("llava-stage2", ["learns=all"])
    with pytest.raises(TrainingError, match=r"entry 0: not one token .*max_length"):
        train_llava(data, tmp_path / "out", settings=["max_length=25"], model=tiny_llava())
    with pytest.raises(DataError, match="cannot be read"):
        train_llava(tmp_path / "none.json", tmp_path / "out", model=tiny_llava())


def test_show_and_a_model_from_parts(tmp_path: Path) -> None:
    """Folders of a tower and a language model, and one line for the bridge, make an official LLaVA."""
    data = write_conversations(tmp_path / "data")
    tiny_tower().save(tmp_path / "tower")
    tiny_language(tie_word_embeddings=False).save(tmp_path / "language")
    how: dict[str, Any] = {"vision": tmp_path / "tower", "language": tmp_path / "language"}
    run = prepare(data, tmp_path / "out", settings=SMALL, **how)
    assert "<image>×16" in show(run) and "⟦" in show(run)
    done = train_llava(data, tmp_path / "out", settings=SMALL, quiet=True, **how)
    theirs = transformers.LlavaForConditionalGeneration.from_pretrained(done.folder, dtype=torch.float32)
    processor = transformers.AutoProcessor.from_pretrained(done.folder)
    ours = sightline.load(done.folder, dtype="float32")
    picture = sightline.read_picture(tmp_path / "data" / "pictures" / "red.png")
    from PIL import Image

    text = "USER: <image>\nWhich one is it? ASSISTANT:"
    inputs = ours.processor([picture], [text])
    official = processor(images=Image.fromarray(picture.pixels), text=text, return_tensors="pt")
    assert torch.equal(official["input_ids"], inputs["input_ids"])
    with torch.no_grad():
        ours_logits, their_logits = ours(**inputs).logits, theirs(**official).logits
    assert (ours_logits - their_logits).abs().max() <= 1e-5 * their_logits.abs().max()


def test_drawn_data_is_looked_at_before_the_first_step(tmp_path: Path) -> None:
    class Drawn:
        drawn, problems, source = True, list[str](), "drawn"

        def __len__(self) -> int:
            return 5

        def phases(self) -> list[tuple[int, list[int]]]:
            return []

        def variants(self, number: int) -> int:
            return 1

        def variant(self, number: int, seed: int) -> int:
            return seed

        def conversation(self, number: int, variant: int = 0) -> Any:
            from sightline.training.conversations import Conversation, told

            return Conversation(f"scene {number}", told([("a " * 90 if number == 3 else "a", "b")], 0))

        def fingerprint(self) -> str:
            return "drawn"

    class None_:
        broken: dict[int, str] = {}  # noqa: RUF012

        def __len__(self) -> int:
            return 0

        def pixels(self, numbers: Any) -> Any:
            raise AssertionError

        def fingerprint(self) -> str:
            return ""

    with pytest.raises(TrainingError, match="scene 3: not one token"):
        make_ready(
            tiny_llava(), llava_recipe("llava-stage2", ["max_length=40", "device=cpu"]), Drawn(), None_(), tmp_path
        )


def test_objective_options() -> None:
    with pytest.raises(UsageError, match="rows=0"):
        Instruct(rows=0)
    assert Options(steps=3).total(7) == 3
    assert Lessons.__doc__
