"""A small Kosmos-2 processor of the reference library: a unigram vocabulary of few words, with all tags and places."""

from __future__ import annotations

from typing import Any

import tokenizers
import transformers
from tokenizers import models, pre_tokenizers, trainers

SENTENCES = [
    "An image of a snowman warming himself by a fire.", "a red mug on the table", "Describe this image in detail:",
    "two mugs, one blue bowl and a green cup", "where is the spoon? it is left of the plate", "the dog's ball",
]  # fmt: skip


def processor(size: int = 35, slots: int = 5) -> Any:
    """With pictures squeezed to size × size and `slots` slots each."""
    trainer = trainers.UnigramTrainer(vocab_size=120, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False)
    backend = tokenizers.Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.train_from_iterator(SENTENCES * 20, trainer)
    pieces = [(piece, score) for piece, score in _pieces(backend) if piece != "<unk>"]
    named = [(name, 0.0) for name in ("<s>", "<pad>", "</s>", "<unk>")]
    words = transformers.XLMRobertaTokenizer(vocab=[*named, *pieces])
    look = transformers.CLIPImageProcessor(
        size={"height": size, "width": size}, crop_size={"height": size, "width": size}
    )
    made = transformers.Kosmos2Processor(look, words)
    made.num_image_tokens = slots
    return made


def _pieces(backend: tokenizers.Tokenizer) -> list[tuple[str, float]]:
    import json

    return [(str(piece), float(score)) for piece, score in json.loads(backend.to_str())["model"]["vocab"]]
