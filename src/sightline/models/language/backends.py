"""Readers of tokenizer files: each gives a `tokenizers.Tokenizer` that yields the official ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors

from sightline.errors import TokenizerError
from sightline.hub import read_json

START, END = "<|startoftext|>", "<|endoftext|>"
WORDS = r"""<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""


def read_backend(folder: Path, extra: dict[str, Any]) -> tokenizers.Tokenizer:
    """tokenizer.json if it is there, else the family's older files; TokenizerError names what is wrong."""
    try:
        if (folder / "tokenizer.json").is_file():
            return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        if (folder / "vocab.json").is_file():
            vocab = read_json(folder / "vocab.json")
            return clip_bpe(vocab, read_merges(folder / "merges.txt"))
    except TokenizerError:
        raise
    except Exception as error:  # the Rust side raises bare Exception
        raise TokenizerError(f"the tokenizer files in {folder} are damaged ({str(error)[:120]}); fetch them again.") from None
    raise TokenizerError(f"{folder} holds no tokenizer that Sightline reads; it needs a tokenizer.json.")


def read_merges(path: Path) -> list[tuple[str, str]]:
    """CLIP's merges.txt: one pair a line, after a version line."""
    if not path.is_file():
        raise TokenizerError(f"{path} is missing; vocab.json needs it beside it.")
    pairs = [tuple(line.split()) for line in path.read_text(encoding="utf-8").splitlines() if line[:9] != "#version:"]
    return [(p[0], p[1]) for p in pairs if len(p) == 2]


def clip_bpe(vocab: dict[str, int], merges: list[tuple[str, str]]) -> tokenizers.Tokenizer:
    """CLIP's lower-cased byte-level BPE with end-of-word marks; wraps every text in start and end tokens."""
    backend = tokenizers.Tokenizer(
        models.BPE(vocab=vocab, merges=merges, continuing_subword_prefix="", end_of_word_suffix="</w>", unk_token=END)
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.RobertaProcessing(
        (END, vocab[END]), (START, vocab[START]), trim_offsets=False, add_prefix_space=False
    )
    backend.add_special_tokens([START, END])
    return backend
