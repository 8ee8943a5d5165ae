"""Train two towers on pairs: from a recipe to a folder with the model, its log and its checkpoints.

This is what `sightline train contrastive` calls.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from sightline.errors import ConfigError, TrainingError, UsageError
from sightline.media import PictureProcessor
from sightline.models.contrastive.clip import CLIP, CLIPConfig
from sightline.models.language.clip_text import CLIPTextConfig
from sightline.models.language.tokenizers import Tokenizer
from sightline.models.processor import Processor
from sightline.models.vision.clip_vision import CLIPVisionConfig
from sightline.training.augment import Augment
from sightline.training.batches import PairBatches
from sightline.training.cache import CachedPictures, DecodedPictures, Pictures
from sightline.training.contrastive import Contrastive
from sightline.training.initial import initialise
from sightline.training.loop import Callback, TrainingResult, fit
from sightline.training.problems import report_problems
from sightline.training.readers import PairData, open_pairs
from sightline.training.recipes import Recipe, recipe
from sightline.training.tokenizer import train_tokenizer


def train_contrastive(
    pairs: str | Path | PairData, out: str | Path, *, recipe_name: str | None = None, settings: Iterable[str] = (),
    model: str | Path | Any | None = None, templates: Sequence[str] = ("a photo of a {}.",), resume: str = "auto",
    pictures: Pictures | None = None, callbacks: Sequence[Callback] = (), quiet: bool = False,
) -> TrainingResult:  # fmt: skip
    """Train from scratch, or on from a checkpoint.

    pairs: anything `open_pairs` reads, or PairData. settings: `key=value` changes of the recipe.
    model: a checkpoint (folder, id, `sightline:NAME`) or a loaded model to go on from; None makes one by the recipe.
    recipe_name: "fine-tune" with a model, else "flickr", unless named.
    pictures: ready uint8 pictures (a world that draws its own); by default they are decoded from the pairs.
    The result holds the model in evaluation mode; `out/model` is its folder in the official format.
    """
    plan = recipe(recipe_name or ("fine-tune" if model is not None else "flickr"), settings)
    data = pairs if isinstance(pairs, PairData) else open_pairs(pairs, templates=templates)
    out = Path(out)
    two_towers = build(plan, data) if model is None else loaded(model)
    batches = pair_batches(plan, data, two_towers, out, pictures=pictures, quiet=quiet)
    objective = Contrastive(chunk=plan.chunk, duplicates=plan.duplicates, text_groups=plan.text_groups)
    report_problems([*data.problems, *batches.pictures.problems], out)
    return fit(two_towers, objective, batches, plan.options, out, resume=resume, callbacks=callbacks, quiet=quiet)


def build(plan: Recipe, data: PairData) -> CLIP:
    """A CLIP with first weights and a tokenizer learned from the data's captions."""
    captions = (caption for texts in data.captions for caption in texts)
    tokenizer = train_tokenizer(captions, vocab_size=plan.vocab_size, context_length=plan.context_length)
    return build_clip(plan, tokenizer)


def build_clip(plan: Recipe, tokenizer: Tokenizer) -> CLIP:
    """A CLIP of the recipe's size around a tokenizer, in the official format."""
    end = tokenizer.rules.pad_id
    config = CLIPConfig(
        projection_dim=plan.embedding_dim,
        logit_scale_init_value=plan.first_scale,
        vision_config=CLIPVisionConfig(
            hidden_size=plan.vision_width, intermediate_size=4 * plan.vision_width, projection_dim=plan.embedding_dim,
            num_hidden_layers=plan.vision_layers, num_attention_heads=plan.vision_heads,
            image_size=plan.image_size, patch_size=plan.patch_size, hidden_act=plan.activation,
        ),
        text_config=CLIPTextConfig(
            vocab_size=tokenizer.backend.get_vocab_size(), hidden_size=plan.text_width,
            intermediate_size=4 * plan.text_width, projection_dim=plan.embedding_dim,
            num_hidden_layers=plan.text_layers, num_attention_heads=plan.text_heads,
            max_position_embeddings=plan.context_length, hidden_act=plan.activation,
            pad_token_id=end, bos_token_id=end - 1, eos_token_id=end,
        ),
    )  # fmt: skip
    if plan.vision_width % plan.vision_heads or plan.text_width % plan.text_heads:
        raise ConfigError("vision_width and text_width must be multiples of vision_heads and text_heads.")
    model = initialise(CLIP(config), plan.options.seed)
    size = plan.image_size
    pictures = PictureProcessor(
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
        do_center_crop=True,
        do_convert_rgb=True,
    )
    model.processor = Processor(pictures, tokenizer)
    return model


def pair_batches(
    plan: Recipe, data: PairData, model: Any, out: Path, *, pictures: Pictures | None = None, quiet: bool = False,
) -> PairBatches:  # fmt: skip
    """Batches as the model's own processor would make them, from cached pictures."""
    looks, tokenizer = model.processor.pictures, model.processor.tokenizer
    if not isinstance(looks, PictureProcessor):
        raise TrainingError("Training takes models with one fixed picture size; a NaFlex model cannot be trained yet.")
    size = (looks.crop_size or looks.size).get("height") or looks.size["shortest_edge"]
    side = plan.side or (round(size * 1.125) if plan.crop < 1 else size)
    store = pictures
    if store is None:
        store = (
            CachedPictures(data, side, out / "cache", threads=plan.decode_threads, quiet=quiet)
            if plan.cache else DecodedPictures(data, side, threads=plan.decode_threads)
        )  # fmt: skip
    causal = model.config.model_type == "clip"  # padding after the end of text changes nothing there
    return PairBatches(
        data, store, tokenizer, batch_size=plan.batch_size, size=size, mean=looks.image_mean, std=looks.image_std,
        augment=Augment(crop=plan.crop, flip=plan.flip, colour=plan.colour), seed=plan.options.seed,
        keep_mask=not causal,
    )  # fmt: skip


def loaded(model: Any) -> Any:
    if isinstance(model, (str, Path)):
        from sightline.models.zoo import load

        model = load(model, dtype="float32")  # the optimiser needs every bit; autocast computes in bfloat16
    if not hasattr(model, "text_features"):
        raise UsageError(
            f"{type(model).__name__} has no text tower; contrastive training takes CLIP, SigLIP and the like."
        )
    return model
