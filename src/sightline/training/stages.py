"""LLaVA's two stages as runs of the one loop: `sightline train llava`.

stage 1   the bridge alone learns, from captions
stage 2   the bridge and the language model learn, from conversations: in full or through LoRA

The vision tower is frozen in both, so what it sees of each picture is computed once (features.py). The model is saved
in the official format and is what `--model` of the next stage takes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sightline.errors import ConfigError, UsageError
from sightline.hub import Model
from sightline.models.vlm.llava import Llava
from sightline.models.vlm.processor import VLMProcessor
from sightline.models.zoo import load
from sightline.training.assembling import assemble
from sightline.training.conversations import Conversations, merged, open_conversations
from sightline.training.features import CachedFeatures, PictureTensors, fits
from sightline.training.instruct import Instruct
from sightline.training.labels import Encoder, Plain, shown
from sightline.training.lessons import Lessons, Said, Seen
from sightline.training.looking import Looking
from sightline.training.loop import Callback, TrainingResult, fit, place
from sightline.training.lora import Adapted
from sightline.training.problems import report_problems
from sightline.training.recipes.llava import LlavaRecipe, llava_recipe, scheduled


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Everything of a run but the loop. model: what learns (a Llava, or one inside Adapted). looking: see Instruct."""

    model: Any
    lessons: Lessons
    plan: LlavaRecipe
    looking: Looking | None = None

    @property
    def llava(self) -> Llava:
        inner: Llava = getattr(self.model, "adapted", self.model)
        return inner

    @property
    def objective(self) -> Instruct:
        lora = f" lora {self.plan.lora_rank}" if isinstance(self.model, Adapted) else ""
        return Instruct(rows=self.plan.rows, learns=self.plan.learns + lora, looking=self.looking)


def train_llava(
    data: str | Path | Conversations, out: str | Path, *, recipe_name: str | None = None, settings: Iterable[str] = (),
    model: str | Path | Llava | None = None, vision: str | Path | None = None, language: str | Path | None = None,
    bridge: str | None = None, pictures: str | Path | None = None, resume: str = "auto",
    callbacks: Sequence[Callback] = (), quiet: bool = False,
) -> TrainingResult:  # fmt: skip
    """One stage. The same call again goes on where it stopped.

    data: anything `open_conversations` reads. pictures: the folder of its pictures, if they lie elsewhere.
    model: a LLaVA to go on with; or vision and language (folders, ids) and bridge (a kind) to put one together.
    recipe_name: by default "llava-stage1" for a model put together here, else "llava-stage2".
    The result's folder, `out/model`, is in the official format; adapters are merged into it.
    """
    ready = prepare(
        data, out, recipe_name=recipe_name, settings=settings, model=model, vision=vision, language=language,
        bridge=bridge, pictures=pictures, quiet=quiet,
    )  # fmt: skip
    report_problems([*ready.lessons.data.problems, *ready.lessons.problems], Path(out))
    return run(ready, out, resume=resume, callbacks=callbacks, quiet=quiet)


def run(
    ready: Prepared, out: str | Path, *, resume: str = "auto", callbacks: Sequence[Callback] = (), quiet: bool = False
) -> TrainingResult:
    """The loop over prepared lessons; the result's model is an ordinary Llava."""
    options = scheduled(ready.plan, ready.lessons.steps_per_epoch)
    done = fit(
        ready.model, ready.objective, ready.lessons, options, out, resume=resume, callbacks=callbacks, quiet=quiet
    )
    if not isinstance(done.model, Adapted):
        return done
    return TrainingResult(
        model=done.model.merge(), folder=done.folder, steps=done.steps, figures=done.figures, seconds=done.seconds
    )


def prepare(
    data: str | Path | Conversations, out: str | Path, *, recipe_name: str | None = None, settings: Iterable[str] = (),
    model: str | Path | Llava | None = None, vision: str | Path | None = None, language: str | Path | None = None,
    bridge: str | None = None, pictures: str | Path | None = None, quiet: bool = False,
) -> Prepared:  # fmt: skip
    """Load or assemble the model, read the data, write every sample and check it."""
    joined = vision is not None and language is not None
    if (model is None) != joined or (model is not None and (vision or language)):
        raise UsageError("name a LLaVA with --model, or put one together with --vision and --language (both).")
    if model is not None and bridge is not None:
        raise UsageError("--bridge chooses the bridge of a model put together here; --model brings its own.")
    plan = llava_recipe(recipe_name or ("llava-stage2" if model is not None else "llava-stage1"), settings)
    if vision is not None and language is not None:
        llava = assemble(
            vision, language, bridge=bridge or plan.bridge, layer=plan.layer, select=plan.select,
            pad_square=plan.pad_square, seed=plan.options.seed,
        )  # fmt: skip
    else:
        llava = loaded(model)
    said = data if isinstance(data, Conversations) else open_conversations(data, pictures)
    said = merged(said, plan.merge) if plan.merge > 1 else said
    seen = PictureTensors(said.picture_names, said.read, processor_of(llava).pictures)
    return make_ready(llava, plan, said, seen, Path(out) / "cache", quiet=quiet)


def make_ready(
    llava: Llava, plan: LlavaRecipe, said: Said, seen: Seen, cache: Path, *, quiet: bool = False
) -> Prepared:
    """Choose what learns, keep what the tower sees, write the lessons."""
    learner = hold(llava, plan)
    processor = processor_of(llava)
    device, dtype = place(plan.options)
    whole = str(dtype) == "torch.float32"
    side = llava.vision.config.image_size
    count = llava.tokens_per_picture(side, side)
    pictures: CachedFeatures | Seen = seen
    if plan.cache and len(seen) and fits(llava, len(seen), cache, whole=whole):  # type: ignore[arg-type]
        pictures = CachedFeatures(llava, seen, cache, device=device, whole=whole, quiet=quiet)
    template = Plain() if plan.template == "plain" else processor.template
    if template is None:
        raise ConfigError("this model brings no chat template; add its chat_template.jinja, or use template=plain.")
    encoder = Encoder(
        processor.tokenizer, template, visual=count, longest=min(plan.max_length, llava.context_length)
    )  # fmt: skip
    row = plan.row_length if plan.row_length is None else min(plan.row_length, llava.context_length)
    lessons = Lessons(
        said, encoder, pictures, batch_size=plan.batch_size, row=row, pad=processor.tokenizer.rules.pad_id,
        seed=plan.options.seed,
    )  # fmt: skip
    return Prepared(model=learner, lessons=lessons, plan=plan)


def hold(llava: Llava, plan: LlavaRecipe) -> Any:
    """Freeze what the stage does not teach; the model, or the model inside its adapters."""
    llava.requires_grad_(True)
    llava.vision.requires_grad_(False)
    llava.language.recompute = plan.recompute
    if plan.learns == "bridge":
        llava.language.requires_grad_(False)
        for part in llava.crossing:
            part.requires_grad_(True)
        return llava
    if plan.learns == "words":
        for part in llava.crossing:
            part.requires_grad_(False)
    if plan.lora_rank:
        return Adapted(
            llava, rank=plan.lora_rank, alpha=plan.lora_alpha, targets=plan.lora_targets, seed=plan.options.seed
        )
    return llava


def loaded(model: str | Path | Model[Any] | None) -> Llava:
    """A Llava in float32 (the optimiser needs every bit; autocast computes in bfloat16)."""
    found = load(model, dtype="float32") if isinstance(model, (str, Path)) else model
    if not isinstance(found, Llava):
        raise UsageError(f"{type(found).__name__} is no LLaVA; put one together with --vision and --language.")
    if found.PICTURES != ("pixel_values",):
        raise UsageError(
            f"{type(found).__name__} reads pictures of any size and only pictures of one size can be learned from here; "
            "name a LLaVA or LLaVA-1.5 checkpoint."
        )
    return found


def processor_of(llava: Llava) -> VLMProcessor:
    if not isinstance(llava.processor, VLMProcessor):
        raise ConfigError("this LLaVA has no processor; its folder needs the tokenizer and preprocessor_config.json.")
    return llava.processor


def show(ready: Prepared, number: int = 0) -> str:
    """One sample with the learned tokens marked."""
    usable = ready.lessons.usable
    if not 0 <= number < len(usable):
        raise UsageError(f"there is no sample {number}; there are {len(usable)}, counted from 0.")
    sample = ready.lessons.sample(usable[number], 0)
    encoder = ready.lessons.encoder
    return f"{sample.name}\n{shown(sample, encoder.tokenizer, encoder.image)}"
