"""Train the built-in CLIP on the tabletop world: `sightline train contrastive --recipe tabletop`.

draw scenes → learn a tokenizer from their captions → CLIP from first weights → whole pictures and regions → folder
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from sightline.models.contrastive.clip import CLIP
from sightline.training.loop import TrainingResult, fit
from sightline.training.recipes import Recipe, recipe
from sightline.training.regions import Grounded
from sightline.training.scenes import SceneBank, SceneBatches
from sightline.training.tokenizer import train_tokenizer
from sightline.training.train import build_clip

__all__ = ["scene_batches", "train_tabletop"]


def train_tabletop(
    out: str | Path,
    *,
    settings: Iterable[str] = (),
    resume: str = "auto",
    bank: Path | None = None,
    quiet: bool = False,
) -> TrainingResult:
    """From nothing to `out/model`, a CLIP in the official format; resumable at every stage.

    settings: `key=value` changes of the recipe "tabletop". bank: where drawn scenes are kept (default: `out/scenes`).
    """
    plan = recipe("tabletop", settings)
    out = Path(out)
    scenes = SceneBank(
        bank or out / "scenes", count=plan.scenes, size=plan.image_size, patch=plan.patch_size, quiet=quiet
    )
    tokenizer = train_tokenizer(scenes.captions(), vocab_size=plan.vocab_size, context_length=plan.context_length)
    model = build_clip(plan, tokenizer)
    objective = Grounded(weight=plan.region_weight, text_groups=plan.text_groups)
    return fit(model, objective, scene_batches(plan, scenes, model), plan.options, out, resume=resume, quiet=quiet)


def scene_batches(plan: Recipe, scenes: SceneBank, model: CLIP) -> SceneBatches:
    """Batches as the model's own processor would make them."""
    looks = model.processor.pictures
    return SceneBatches(
        scenes, model.processor.tokenizer, batch_size=plan.batch_size, mean=looks.image_mean, std=looks.image_std,
        regions=plan.regions, simple_steps=plan.simple_steps, seed=plan.options.seed,
    )  # fmt: skip
