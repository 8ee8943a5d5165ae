"""A small byte-pair tokenizer learned from captions, in CLIP's format, for models trained from scratch.

CLIP's own vocabulary has 49,408 entries; at width 256 its table alone would outweigh a small model, and most of its
words would never be seen. A vocabulary learned from the captions is a tenth of that and knows every word that counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from sightline.errors import DataError
from sightline.models.language.backends import END, START, clip_bpe
from sightline.models.language.tokenizers import Rules, Tokenizer

BYTES = 256


def train_tokenizer(captions: Iterable[str], *, vocab_size: int = 4096, context_length: int = 77) -> Tokenizer:
    """Learn merges from captions. The same captions give the same tokenizer, in whatever order they come.

    Ids stand in CLIP's order: bytes, bytes at the end of a word, merges, start of text, end of text (the highest).
    Raises DataError for a vocabulary too small to hold every byte.
    """
    least = 2 * BYTES + 2
    if vocab_size < least:
        raise DataError(f"vocab_size={vocab_size} cannot hold every byte; use at least {least}.")
    alphabet = _alphabet()
    empty = clip_bpe({**{letter: i for i, letter in enumerate(alphabet)}, START: BYTES, END: BYTES + 1}, [])
    words: Counter[str] = Counter()
    for caption in captions:
        text = empty.normalizer.normalize_str(caption)
        words.update(piece for piece, _ in empty.pre_tokenizer.pre_tokenize_str(text))
    merges = _learn(words, vocab_size - least)
    tokens = [*alphabet, *(f"{letter}</w>" for letter in alphabet)]
    tokens += [token for token in dict.fromkeys(a + b for a, b in merges) if token not in set(tokens)]
    vocab = {token: i for i, token in enumerate([*tokens, START, END])}
    extra = {
        "tokenizer_class": "CLIPTokenizer", "bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END,
        "model_max_length": context_length, "do_lower_case": True,
    }  # fmt: skip
    return Tokenizer(clip_bpe(vocab, merges), Rules(vocab[END], "longest", mask=True), context_length, extra)


def _alphabet() -> list[str]:
    """The 256 letters that stand for bytes, in the order of CLIP's vocabulary (printable ones first)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(BYTES) if byte not in printable]
    letters = [chr(b) for b in printable] + [chr(BYTES + i) for i in range(len(others))]
    assert set(letters) == set(pre_tokenizers.ByteLevel.alphabet())
    return letters


def _learn(words: Counter[str], count: int) -> list[tuple[str, str]]:
    """Merges from words that are already in byte letters, the most frequent pair first."""
    backend = tokenizers.Tokenizer(models.BPE(continuing_subword_prefix="", end_of_word_suffix="</w>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(
        vocab_size=2 * BYTES + count, show_progress=False, end_of_word_suffix="</w>", min_frequency=2,
        initial_alphabet=_alphabet(), limit_alphabet=BYTES,
    )  # fmt: skip
    # Sorted, so that ties between equally frequent pairs do not depend on the order of the captions.
    lines = (" ".join([word] * words[word]) for word in sorted(words))
    backend.train_from_iterator(lines, trainer)
    import json

    found = json.loads(backend.to_str())["model"]["merges"]
    pairs = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in found]
    return [(a, b) for a, b in pairs][:count]
