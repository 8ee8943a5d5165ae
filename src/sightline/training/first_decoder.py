"""A small Llama from nothing: its tokenizer learned from what will be said, its first weights, and what it is born with.

The built-in LLaVA starts here, and every bridge of `experiment bridges`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import tokenizers
import torch
from jaxtyping import Float
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn

from sightline.errors import UsageError
from sightline.models.language.language_backends import required
from sightline.models.language.llama import Llama, LlamaConfig
from sightline.models.language.locations import TOKENS
from sightline.models.language.tokenizers import Rules, Tokenizer
from sightline.models.language.words import MULTIPLE
from sightline.models.processor import Processor
from sightline.nn import Attention
from sightline.training.conversations import IMAGE
from sightline.training.initial import fill_blocks, random_waves
from sightline.training.recipes.llava import LlavaRecipe

START, END, PAD = "<s>", "</s>", "<pad>"
REACH = 40.0  # places (of 1,000) over which their first vectors change
COPIED = 0.4  # of what is looked at for being alike
PLACES = re.compile(r"<loc_\d+>")


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
    first_places(decoder.words.weight, [tokenizer.token_id(place) for place in TOKENS])
    decoder.processor = Processor(None, tokenizer)
    return decoder


@torch.no_grad()
def first_weights(decoder: Llama) -> None:
    """Normal weights of 0.02 (see fill_blocks)."""
    nn.init.normal_(decoder.words.weight, std=0.02)
    fill_blocks(decoder, len(decoder.blocks))


@torch.no_grad()
def first_places(table: Float[Tensor, "vocabulary width"], rows: list[int], seed: int = 0) -> None:
    """Vectors of `<loc_000>` … that change slowly with the number, of the length that other words' vectors have.

    Places that lie beside each other are nearly the same answer; with unrelated vectors a model would have to find out
    1,000 times what is told once here.
    """
    generator = torch.Generator().manual_seed(seed)
    waves = random_waves(torch.arange(len(rows))[:, None] / REACH, table.shape[1], generator)
    even = waves.shape[1]
    table[rows, :even] = waves[:, torch.randperm(even, generator=generator)] * 0.02


@torch.no_grad()
def look_for_alike(decoder: nn.Module, strength: float, seed: int = 0) -> None:
    """Add to every layer's attention: look at tokens that resemble yours (query = key), and copy them (output = value').

    With patches in the vectors of words, the word "mug" then looks at patches of mugs from the first step on (mimetic
    initialisation: Trockman and Kolter 2023, arXiv:2305.09828). Copies are weaker, lest they drown what is copied to.
    """
    generator = torch.Generator().manual_seed(seed)
    for attention in (module for module in decoder.modules() if isinstance(module, Attention)):
        if attention.heads != attention.kv_heads:
            raise UsageError("alike needs kv_heads = heads; use alike=0 where heads share their keys.")
        width = attention.output.in_features
        look, copy = (torch.linalg.qr(torch.randn(width, width, generator=generator))[0] for _ in range(2))
        query, key, value = attention.qkv.weight.chunk(3)
        query += strength * look
        key += strength * look
        value += COPIED * strength * copy
        attention.output.weight += COPIED * strength * copy.T


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
