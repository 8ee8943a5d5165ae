"""Train the built-in LLaVA on the tabletop world: `sightline train llava --recipe tabletop-llava`.

draw scenes and what can be said of them → learn a tokenizer from it → a small Llama from first weights
→ words     the language model alone reads and writes what is said (LLaVA starts from one that can; this one is new)
→ stage 1   the bridge alone, from captions
→ stage 2   bridge and language model, from all kinds of turns
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import tokenizers
import torch
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors, trainers
from torch import nn

from sightline.models.bridges import BridgeConfig
from sightline.models.language.language_backends import required
from sightline.models.language.llama import Llama, LlamaConfig
from sightline.models.language.locations import TOKENS
from sightline.models.language.tokenizers import Rules, Tokenizer
from sightline.models.language.words import MULTIPLE
from sightline.models.processor import Processor
from sightline.models.vlm.llava import Llava
from sightline.models.vlm.vicuna import llava_template
from sightline.nn import Attention, GatedMLP
from sightline.training.assembling import assemble
from sightline.training.conversations import IMAGE
from sightline.training.lesson_bank import BankConversations, BankPictures, LessonBank
from sightline.training.loop import TrainingResult
from sightline.training.recipes.llava import LlavaRecipe, llava_recipe, things_of
from sightline.training.stages import Prepared, make_ready, run

START, END, PAD = "<s>", "</s>", "<pad>"
PLACES = re.compile(r"<loc_\d+>")


def train_tabletop_llava(
    out: str | Path, *, settings: Iterable[str] = (), resume: str = "auto", bank: Path | None = None,
    quiet: bool = False,
) -> TrainingResult:  # fmt: skip
    """From a CLIP and nothing else to `out/model`, a LLaVA in the official format; resumable at every stage.

    settings: `key=value` changes of the recipe. bank: where drawn scenes are kept (default: `out/scenes`).
    """
    plan, out = llava_recipe("tabletop-llava", settings), Path(out)
    lessons = drawn_lessons(plan, bank or out / "scenes", quiet=quiet)
    llava = build_tabletop_llava(plan, lessons.texts())
    for stage, name in ((words_stage(plan), "words"), (bridge_stage(plan), "bridge")):
        if stage.options.steps:
            ready = prepare_stage(stage, llava, lessons, out, quiet=quiet)
            run(ready, out / name, resume=resume, quiet=quiet)
    return run(prepare_stage(plan, llava, lessons, out, quiet=quiet), out, resume=resume, quiet=quiet)


def drawn_lessons(plan: LlavaRecipe, folder: Path, *, quiet: bool = False) -> LessonBank:
    """The recipe's scenes, drawn under `folder` unless they are there."""
    return LessonBank(folder, count=plan.scenes, size=plan.image_size, things=things_of(plan), quiet=quiet)


def prepare_stage(plan: LlavaRecipe, llava: Llava, lessons: LessonBank, out: Path, *, quiet: bool = False) -> Prepared:
    """One stage on the bank: text alone for words, captions for the bridge, every kind of turn for the last.

    The last begins with scenes of one thing: where there is nothing to choose, a model learns within a hundred steps to
    look at the picture at all; with up to eight things it had not after 140 (it answered from the words alone).
    """
    kinds = ("caption",) if plan.learns == "bridge" else None
    turns = 1 if plan.learns == "bridge" else plan.turns
    rising = ((plan.simple_steps, 1), (plan.few_steps, 3)) if plan.learns == "language" else ()
    said = BankConversations(lessons, turns=turns, kinds=kinds, pictures=plan.learns != "words", rising=rising)
    seen = BankPictures(lessons, llava.processor.pictures)
    return make_ready(llava, plan, said, seen, out / "cache", quiet=quiet)


def words_stage(plan: LlavaRecipe) -> LlavaRecipe:
    return dataclasses.replace(plan, learns="words", options=_short(plan, plan.words_steps))


def bridge_stage(plan: LlavaRecipe) -> LlavaRecipe:
    return dataclasses.replace(plan, learns="bridge", options=_short(plan, plan.bridge_steps))


def _short(plan: LlavaRecipe, steps: int) -> Any:
    return dataclasses.replace(plan.options, steps=steps, epochs=None, warmup=min(plan.options.warmup, steps // 4))


def build_tabletop_llava(plan: LlavaRecipe, texts: Iterable[str]) -> Llava:
    """The recipe's LLaVA: the CLIP's tower, a new bridge, a new Llama, and a tokenizer learned from the texts."""
    return with_bridge(plan, new_decoder(plan, texts))


def with_bridge(plan: LlavaRecipe, decoder: Llama, bridge: str | BridgeConfig | None = None) -> Llava:
    """The recipe's tower and bridge (or this one) before a language model that `new_decoder` made."""
    return assemble(
        plan.vision, decoder, bridge=bridge or plan.bridge, layer=plan.layer, select=plan.select,
        template=llava_template("", bos=START, eos=END), seed=plan.options.seed,
    )  # fmt: skip


def new_decoder(plan: LlavaRecipe, texts: Iterable[str]) -> Llama:
    """The recipe's language model with first weights, and its tokenizer."""
    tokenizer = words_tokenizer(texts, vocab_size=plan.vocab_size, context_length=plan.context_length)
    rows = -(-tokenizer.size // MULTIPLE) * MULTIPLE
    torch.manual_seed(plan.options.seed)
    decoder = Llama(
        LlamaConfig(
            vocab_size=rows, hidden_size=plan.width, intermediate_size=plan.intermediate,
            num_hidden_layers=plan.layers, num_attention_heads=plan.heads, num_key_value_heads=plan.kv_heads,
            max_position_embeddings=plan.context_length, tie_word_embeddings=True,
            bos_token_id=tokenizer.token_id(START), eos_token_id=tokenizer.token_id(END),
            pad_token_id=tokenizer.token_id(PAD),
        )
    )  # fmt: skip
    first_weights(decoder)
    decoder.processor = Processor(None, tokenizer)
    return decoder


@torch.no_grad()
def first_weights(decoder: Llama) -> None:
    """Normal weights of 0.02; what adds to the residual stream shrinks with the root of its depth (GPT-2, §2.3)."""
    into_stream = 0.02 * (2 * len(decoder.blocks)) ** -0.5
    nn.init.normal_(decoder.words.weight, std=0.02)
    for module in decoder.modules():
        if isinstance(module, Attention):
            nn.init.normal_(module.qkv.weight, std=0.02)
            nn.init.normal_(module.output.weight, std=into_stream)
        elif isinstance(module, GatedMLP):
            nn.init.normal_(module.gate_up.weight, std=0.02)
            nn.init.normal_(module.down.weight, std=into_stream)


def words_tokenizer(texts: Iterable[str], *, vocab_size: int, context_length: int) -> Tokenizer:
    """Byte-level BPE learned from the texts, with `<image>`, `<loc_000>` … `<loc_999>` and what opens and closes.

    Places are tokens of their own and no part of what is learned. All 1,000 are there, as the official spelling has
    it, though boxes of 128-pixel pictures with whole pixels for edges meet only 129 of them: the others cost 0.2 M
    parameters here and are met by pictures of other sizes.
    """
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, show_progress=False, min_frequency=2, special_tokens=[START, END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    backend.train_from_iterator(_without_places(texts), trainer)
    backend.add_tokens([AddedToken(place, normalized=False, special=False) for place in TOKENS])
    backend.add_special_tokens([AddedToken(IMAGE, normalized=False, special=True)])
    start = required(backend, START)
    backend.post_processor = processors.TemplateProcessing(single=f"{START} $A", special_tokens=[(START, start)])
    extra = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": START, "eos_token": END, "pad_token": PAD,
        "model_max_length": context_length, "clean_up_tokenization_spaces": False, "image_token": IMAGE,
    }  # fmt: skip
    rules = Rules(required(backend, PAD), "longest", mask=True, side="left", cut=None)
    return Tokenizer(backend, rules, context_length, extra)


def _without_places(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        yield f"USER: {PLACES.sub(' ', text)} ASSISTANT:"
