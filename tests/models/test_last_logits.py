"""Logits of the last position alone: the same as of all, and no product that would copy the table of words."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from sightline.models.language.bart import Bart, BartConfig
from sightline.models.language.gemma import Gemma, GemmaConfig
from sightline.models.language.llama import Llama, LlamaConfig
from sightline.models.language.t5 import T5, T5Config

SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
MODELS = {
    "llama": lambda: Llama(LlamaConfig(vocab_size=50, tie_word_embeddings=True, **SMALL)),
    "gemma": lambda: Gemma(GemmaConfig(vocab_size=50, head_dim=8, num_key_value_heads=1, **SMALL)),
    "bart": lambda: Bart(BartConfig(vocab_size=50, d_model=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=24,
                                    decoder_ffn_dim=24, encoder_attention_heads=2, decoder_attention_heads=2)),
    "t5": lambda: T5(T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_decoder_layers=1,
                              num_heads=2, tie_word_embeddings=False)),
}  # fmt: skip


class Products(TorchFunctionMode):
    """Linear layers whose input cannot be read as rows (ATen/native/LinearAlgebra.cpp, should_fold)."""

    def __init__(self) -> None:
        super().__init__()
        self.copied: list[tuple[int, ...]] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.nn.functional.linear:
            x = args[0]
            steps = zip(x.stride()[:-2], x.stride()[1:-1], x.shape[1:-1], strict=True)
            if any(outer != inner * size for outer, inner, size in steps):
                self.copied.append(tuple(x.shape))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("batch", [1, 3])
def test_the_last_logits_are_scored_as_rows(name: str, batch: int) -> None:
    torch.manual_seed(0)
    model: Any = MODELS[name]().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    ids = torch.randint(3, 50, (batch, 7))
    given = {"encoder_hidden_states": torch.randn(batch, 4, 16)} if name in ("bart", "t5") else {}
    with torch.inference_mode():
        whole = model(ids, **given).logits
        with Products() as products:
            last = model(ids, **given, last_only=True).logits
    assert last.shape == (batch, 1, 50) and products.copied == []
    torch.testing.assert_close(last, whole[:, -1:], rtol=0, atol=1e-5)
