"""Recipes for models that see and speak: LLaVA-1.5's two stages, fine-tuning, and the built-in model."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from sightline.errors import UsageError
from sightline.training.options import Options
from sightline.training.recipes.changing import changed
from sightline.worlds.tabletop.instructions import KINDS_OF_TURNS


@dataclass(frozen=True, kw_only=True)
class LlavaRecipe:
    """learns: "bridge" (stage 1: the bridge alone), "language" (stage 2: the bridge and the language model) or "words"
    (the language model alone, for one that starts from nothing). The vision tower is frozen in all.

    template: "chat" (the model's own chat template) or "plain" (pictures, then what
    is said of them). bridge, layer, select: of a model put together from a tower and a language model.
    batch_size: conversations of the whole world. rows: rows computed at once (gradient accumulation), None: all.
    row_length: short samples are packed into rows of so many tokens; None: one sample a row; 0: the longest of each
    batch decides. max_length: longer samples are cut. cache: what the tower sees is computed once and kept on disk.
    merge: single questions on one picture become conversations of at most so many. warmup_share: part of all steps
    that warm up (instead of `warmup`). lora_rank 0: the language model learns in full.
    recompute: the decoder's activations are computed again on the way back: less memory, about a third more time.
    """

    what: str = ""
    learns: str = "language"
    template: str = "chat"
    bridge: str = "mlp2x_gelu"
    layer: tuple[int, ...] = (-2,)
    select: str = "default"
    pad_square: bool = False
    batch_size: int = 128
    rows: int | None = None
    row_length: int | None = 0
    max_length: int = 2048
    merge: int = 1
    cache: bool = True
    warmup_share: float | None = 0.03
    lora_rank: int = 0
    lora_alpha: float = 16.0
    lora_targets: tuple[str, ...] = ()
    recompute: bool = False

    # The built-in model only: its language model, its data, and the steps of the stages before the last.
    vision: str = "sightline:tabletop-clip"
    width: int = 192
    layers: int = 6
    heads: int = 3
    kv_heads: int = 3
    intermediate: int = 512
    vocab_size: int = 1024  # words, before 1,000 places, the picture token and what opens and closes
    context_length: int = 512
    scenes: int = 0
    image_size: int = 128
    things: tuple[str, ...] = ("1-8", "1-3", "1-1")  # how many things the scenes show, 2,000 scenes each in turn
    turns: int = 8
    shares: tuple[str, ...] = ()  # "kind=share": of the turns of a kind, how many are told (others: see lesson_bank)
    words_steps: int = 0
    sight_steps: int = 0  # tower, bridge and word vectors, from what every patch shows
    sight_batch: int = 64  # pictures
    sight_rates: tuple[str, ...] = ()  # as `rates`, for that stage
    mirror: bool = False  # every other scene of that stage is seen in a mirror
    early_matrix_rate: float = 0.02  # of the stages before the last
    bridge_steps: int = 0
    simple_steps: int = 0  # of the last stage: scenes of one thing, then …
    few_steps: int = 0  # … of one to three

    alike: float = (
        0.0  # how much of "look at what is alike, and copy it" the decoder's attention gets before the last stage
    )
    look_layer: int | None = None  # whose first head is shown where to look (see looking), and …
    look_again: int | None = None  # … where once more, at what the answer tells of
    look_weight: float = 0.5

    options: Options = field(default_factory=Options)


_AS_LLAVA = Options(
    epochs=1.0, learning_rate=2e-5, warmup=0, weight_decay=0.0, betas=(0.9, 0.999), eps=1e-8, clip_norm=1.0,
    checkpoint_every=500,
)  # fmt: skip

LLAVA_RECIPES: dict[str, LlavaRecipe] = {
    "llava-stage1": LlavaRecipe(
        what="LLaVA-1.5's first stage: the bridge learns from captions (558 K of them there)",
        learns="bridge", template="plain", batch_size=256,
        options=dataclasses.replace(_AS_LLAVA, learning_rate=1e-3),
    ),
    "llava-stage2": LlavaRecipe(
        what="LLaVA-1.5's second stage: bridge and language model learn from conversations (665 K of them there)",
        learns="language", template="chat", batch_size=128, options=_AS_LLAVA,
    ),
    "llava-stage2-lora": LlavaRecipe(
        what="the second stage through LoRA, with LLaVA-1.5's rank 128 on every projection and its rate for the bridge",
        learns="language", template="chat", batch_size=128, lora_rank=128, lora_alpha=256.0,
        options=dataclasses.replace(_AS_LLAVA, learning_rate=2e-4, rates=("*bridge.*=2e-5",)),
    ),
    "llava-fine-tune": LlavaRecipe(
        what="from a small checkpoint such as the built-in one: short answers on your own pictures",
        learns="language", template="chat", batch_size=64, merge=6, max_length=512,
        options=dataclasses.replace(_AS_LLAVA, epochs=6.0, learning_rate=8e-4, checkpoint_every=100),
    ),
    "tabletop-llava": LlavaRecipe(
        what="the built-in model: drawn scenes, a language model from scratch, then the two stages",
        learns="language", template="chat", layer=(-1,), batch_size=32, rows=16, max_length=512,
        scenes=48_000, image_size=192, turns=12, words_steps=150, sight_steps=3200, mirror=True,
        sight_rates=("*vision.positions*=2e-3", "*vision.*=3e-4"), alike=0.7, look_layer=2, look_again=4,
        simple_steps=60, few_steps=300, warmup_share=None,
        options=Options(
            steps=2600, learning_rate=1e-3, optimiser="muon", matrix_rate=0.007,
            warmup=100, weight_decay=0.05, betas=(0.9, 0.98), eps=1e-8,
            ema=0.99, checkpoint_every=100,
        ),
    ),
}  # fmt: skip

_BUILT_IN = LLAVA_RECIPES["tabletop-llava"]
LLAVA_RECIPES["tabletop-llava-further"] = dataclasses.replace(
    _BUILT_IN,
    what="the built-in model's last stage again, from a model: above all what is beside and nearest to what",
    words_steps=0, sight_steps=0, simple_steps=0, few_steps=0, alike=0.0,
    shares=(
        "exists=0.2", "count=0.3", "colour=0.2", "material=0.2", "size=0.2", "kind=0.3", "defect=0.3", "hidden=0.6",
        "left=0.25", "right=0.25", "front=0.25", "behind=0.25", "reads=0.2", "point=0.4", "point all=0.4", "name=0.4",
        "caption=0.4",
    ),
    options=dataclasses.replace(_BUILT_IN.options, learning_rate=7e-4, matrix_rate=0.005),
)  # fmt: skip


def llava_recipe(name: str, assignments: Iterable[str] = ()) -> LlavaRecipe:
    """A recipe by name with `key=value` changes of its own settings and of Options.

    Raises UsageError for an unknown recipe, key or value.
    """
    given = list(assignments)
    said = {text.partition("=")[0] for text in given}
    given += ["warmup_share=none"] * ("warmup" in said and "warmup_share" not in said)  # steps instead of a share
    plan = changed(LLAVA_RECIPES, name, given)
    for key, value, known in (
        ("learns", plan.learns, ("bridge", "language", "words")), ("template", plan.template, ("chat", "plain")),
        ("select", plan.select, ("default", "full")),
    ):  # fmt: skip
        if value not in known:
            raise UsageError(f"{key}={value!r} is unknown; choose {' or '.join(known)}.")
    return plan


def things_of(plan: LlavaRecipe) -> tuple[tuple[int, int], ...]:
    """Fewest and most things of a scene, in turn. Raises UsageError for what is no such share."""
    found = [re.fullmatch(r"([1-8])-([1-8])", share) for share in plan.things]
    if not found or not all(m and m[1] <= m[2] for m in found):
        raise UsageError(f"things={','.join(plan.things)} is unknown; write shares from 1-1 to 1-8, such as 1-1,1-3.")
    return tuple((int(m[1]), int(m[2])) for m in found if m)


def shares_of(plan: LlavaRecipe) -> dict[str, float]:
    """Kind of turn → share that is told. Raises UsageError for what is no such share."""
    found = {share: re.fullmatch(r"([a-z ]+)=(0?\.\d+|[01](?:\.0*)?)", share) for share in plan.shares}
    if wrong := next(
        (share for share, match in found.items() if match is None or match[1] not in KINDS_OF_TURNS), None
    ):
        raise UsageError(f"shares={wrong} is unknown; write KIND=SHARE, from 0 to 1, of {', '.join(KINDS_OF_TURNS)}.")
    return {match[1]: float(match[2]) for match in found.values() if match}


def scheduled(plan: LlavaRecipe, steps_per_epoch: int) -> Options:
    """The options of a run, with the warm-up in steps."""
    if plan.warmup_share is None:
        return plan.options
    return dataclasses.replace(plan.options, warmup=round(plan.warmup_share * plan.options.total(steps_per_epoch)))
