"""Train the built-in LLaVA on the tabletop world: `sightline train llava --recipe tabletop-llava[-further]`.

draw scenes and what can be said of them → learn a tokenizer from it → a small Llama from first weights
→ words     the language model alone reads and writes what is said (LLaVA starts from one that can; this one is new)
→ stage 1   tower and bridge, from what every patch shows and where it is, in the vectors of words (sight.py)
→ stage 2   bridge and language model, from all kinds of turns; the tower is frozen
further     stage 2 again, on from a model
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sightline.errors import UsageError
from sightline.models.bridges import BridgeConfig
from sightline.models.language.llama import Llama
from sightline.models.language.locations import TOKENS
from sightline.models.vlm.llava import Llava
from sightline.models.vlm.vicuna import llava_template
from sightline.training.assembling import assemble
from sightline.training.first_decoder import END, START, look_for_alike, new_decoder
from sightline.training.lesson_bank import PATCH, SHARES, BankConversations, BankPictures, LessonBank
from sightline.training.looking import Looking
from sightline.training.loop import TrainingResult, fit
from sightline.training.recipes.llava import LlavaRecipe, llava_recipe, shares_of, things_of
from sightline.training.sight import NamesAndPlaces, Seeing, as_loud_as_words, louder_positions
from sightline.training.sight_bank import SightBatches, name_ids, value_words
from sightline.training.stages import Prepared, loaded, make_ready, processor_of, run


def train_tabletop_llava(
    out: str | Path, *, recipe_name: str = "tabletop-llava", settings: Iterable[str] = (),
    model: str | Path | Llava | None = None, resume: str = "auto", bank: Path | None = None, quiet: bool = False,
) -> TrainingResult:  # fmt: skip
    """From a CLIP and nothing else, or on from `model`, to `out/model`, a LLaVA in the official format; resumable at
    every stage.

    settings: `key=value` changes of the recipe. bank: where drawn scenes are kept (default: `out/scenes`).
    Raises UsageError for a model whose pictures have another size than the recipe's scenes.
    """
    plan, out = llava_recipe(recipe_name, settings), Path(out)
    llava = None if model is None else _for_scenes(loaded(model), plan)
    lessons = drawn_lessons(plan, bank or out / "scenes", quiet=quiet)
    llava = llava or build_tabletop_llava(plan, lessons.texts())

    def teach(stage: LlavaRecipe, folder: Path) -> TrainingResult:
        ready = prepare_stage(stage, llava, lessons, out, quiet=quiet)
        return run(ready, folder, resume=resume, quiet=quiet)

    if plan.words_steps:
        teach(words_stage(plan), out / "words")
    if plan.sight_steps:
        learn_to_see(plan, llava, lessons, out / "sight", resume=resume, quiet=quiet)
    if plan.bridge_steps:
        teach(bridge_stage(plan), out / "bridge")
    if plan.alike:
        look_for_alike(llava.language, plan.alike, plan.options.seed)
    return teach(plan, out)


def drawn_lessons(plan: LlavaRecipe, folder: Path, *, quiet: bool = False) -> LessonBank:
    """The recipe's scenes, drawn under `folder` unless they are there."""
    return LessonBank(folder, count=plan.scenes, size=plan.image_size, things=things_of(plan), quiet=quiet)


def learn_to_see(
    plan: LlavaRecipe, llava: Llava, lessons: LessonBank, out: Path, *, resume: str = "auto", quiet: bool = False
) -> None:
    """Stage 1: tower, bridge and word vectors, in place."""
    tokenizer = processor_of(llava).tokenizer
    places = [tokenizer.token_id(place) for place in TOKENS]
    seen = BankPictures(lessons, processor_of(llava).pictures)
    rising = [(plan.sight_steps // 10, lessons.easy(1)), (plan.sight_steps // 5, lessons.easy(3))]
    data = SightBatches(
        lessons, seen, batch_size=plan.sight_batch, rising=rising, mirror=plan.mirror, seed=plan.options.seed
    )
    options = dataclasses.replace(_short(plan, plan.sight_steps), rates=plan.sight_rates)
    _same_patches(llava)
    tower: Any = llava.vision
    side = tower.config.image_size // tower.config.patch_size
    louder_positions(tower.positions.table, (side, side), plan.options.seed)
    seeing = Seeing(llava, value_words(tokenizer), places, seed=plan.options.seed)
    fit(seeing, NamesAndPlaces(), data, options, out, resume=resume, quiet=quiet)
    as_loud_as_words(llava, seen.pixels(range(min(64, len(lessons)))))


def prepare_stage(plan: LlavaRecipe, llava: Llava, lessons: LessonBank, out: Path, *, quiet: bool = False) -> Prepared:
    """One stage on the bank: text alone for words, captions for the bridge, every kind of turn for the last.

    The last begins with scenes of one thing: where there is nothing to choose, a model learns within a hundred steps to
    look at the picture at all; with up to eight things it had not after 140 (it answered from the words alone).
    """
    kinds = ("caption",) if plan.learns == "bridge" else None
    turns = 1 if plan.learns == "bridge" else plan.turns
    rising = ((plan.simple_steps, 1), (plan.few_steps, 3)) if plan.learns == "language" else ()
    looking = _looking(plan, llava) if plan.learns == "language" else None
    said = BankConversations(
        lessons, turns=turns, kinds=kinds, pictures=plan.learns != "words", rising=rising,
        looks=looking is not None, shares=SHARES | shares_of(plan),
    )  # fmt: skip
    seen = BankPictures(lessons, llava.processor.pictures)
    return dataclasses.replace(make_ready(llava, plan, said, seen, out / "cache", quiet=quiet), looking=looking)


def _for_scenes(llava: Llava, plan: LlavaRecipe) -> Llava:
    """The model itself, whose pictures must be the scenes'."""
    side = llava.vision.config.image_size
    if side != plan.image_size:
        raise UsageError(
            f"the model's pictures have {side} pixels a side and the scenes {plan.image_size}; set image_size={side}."
        )
    return llava


def _same_patches(llava: Llava) -> None:
    """Raises UsageError where truth is kept for other patches than the tower's."""
    tower: Any = llava.vision
    if tower.config.patch_size != PATCH:
        raise UsageError(
            f"the scenes say what patches of {PATCH} pixels show, and this tower's have {tower.config.patch_size}; take "
            f"a tower with patches of {PATCH}, or sight_steps=0 and look_layer=none."
        )


def _looking(plan: LlavaRecipe, llava: Llava) -> Looking | None:
    if plan.look_layer is None:
        return None
    _same_patches(llava)
    names = name_ids(processor_of(llava).tokenizer)
    looking = Looking(plan.look_layer, plan.look_weight, names, plan.look_again)
    blocks: Any = llava.language.blocks
    looking.check(len(blocks), blocks[0].attention.heads)
    return looking


def words_stage(plan: LlavaRecipe) -> LlavaRecipe:
    return dataclasses.replace(plan, learns="words", cache=False, options=_short(plan, plan.words_steps))


def bridge_stage(plan: LlavaRecipe) -> LlavaRecipe:
    return dataclasses.replace(plan, learns="bridge", options=_short(plan, plan.bridge_steps))


def _short(plan: LlavaRecipe, steps: int) -> Any:
    warmup = min(plan.options.warmup, steps // 4)
    return dataclasses.replace(
        plan.options, steps=steps, epochs=None, warmup=warmup, matrix_rate=plan.early_matrix_rate
    )


def build_tabletop_llava(plan: LlavaRecipe, texts: Iterable[str]) -> Llava:
    """The recipe's LLaVA: the CLIP's tower, a new bridge, a new Llama, and a tokenizer learned from the texts."""
    return with_bridge(plan, new_decoder(plan, texts))


def with_bridge(plan: LlavaRecipe, decoder: Llama, bridge: str | BridgeConfig | None = None) -> Llava:
    """The recipe's tower and bridge (or this one) before a language model that `new_decoder` made."""
    return assemble(
        plan.vision, decoder, bridge=bridge or plan.bridge, layer=plan.layer, select=plan.select,
        template=llava_template("", bos=START, eos=END), image_size=plan.image_size, seed=plan.options.seed,
    )  # fmt: skip
