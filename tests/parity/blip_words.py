"""Small tokenizers of the kinds that the BLIP family reads with, as transformers saves and loads them, and photos."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import transformers
from PIL import Image
from tokenizers import models, normalizers, pre_tokenizers, trainers

from models.test_language_tokenizers import MODEL, corpus, written
from models.test_sentencepiece import trained


def photos(count: int) -> list[Image.Image]:
    noise = np.random.default_rng(3)
    sizes = [(53, 41), (37, 71), (35, 35), (97, 40), (1, 1), (3, 600)][:count]
    return [Image.fromarray(noise.integers(0, 256, (h, w, 3), dtype=np.uint8)) for h, w in sizes]


def bert(folder: Path) -> Any:
    backend = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    backend.train_from_iterator(
        corpus(), trainers.WordPieceTrainer(vocab_size=200, special_tokens=specials, show_progress=False)
    )
    names = sorted(backend.get_vocab().items(), key=lambda pair: pair[1])
    raw = written(folder / "bert", "BertTokenizer", {}, vocab__txt="".join(f"{n}\n" for n, _ in names))
    return transformers.BertTokenizer.from_pretrained(raw)


def opt(folder: Path, side: str = "left") -> Any:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<s>", "<pad>", "</s>", "<unk>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    backend.train_from_iterator(corpus(), trainer)
    model = json.loads(backend.to_str())["model"]
    config = {
        "add_bos_token": True, "bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>",
        "padding_side": side,
    }  # fmt: skip
    merges = "\n".join(" ".join(m) for m in model["merges"])
    raw = written(folder / "opt", "GPT2Tokenizer", config, vocab__json=json.dumps(model["vocab"]), merges__txt=merges)
    return transformers.GPT2Tokenizer.from_pretrained(raw)


def t5(folder: Path, side: str = "left") -> Any:
    raw = written(folder / "t5", "T5Tokenizer", {"padding_side": side}, spiece__model=trained(**MODEL["t5"]))
    return transformers.T5Tokenizer.from_pretrained(raw)


def llama(folder: Path, side: str = "left") -> Any:
    config = {"add_bos_token": True, "padding_side": side, "pad_token": "</s>"}
    raw = written(folder / "llama", "LlamaTokenizer", config, tokenizer__model=trained(**MODEL["llama"]))
    return transformers.LlamaTokenizer.from_pretrained(raw)


def looks(size: int = 35) -> Any:
    return transformers.BlipImageProcessorPil(size={"height": size, "width": size})
