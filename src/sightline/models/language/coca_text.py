"""CoCa's words: a causal text tower with [CLS] at its end, and a decoder that looks at the picture (2205.01917, §3.1).

ids → word vectors + [CLS] → L causal blocks → [CLS] → norm (`pooler_output`) · the words go on, not normed
words, picture tokens → L × (causal block, cross-attention block) → norm → logits over the vocabulary
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sightline.errors import TokenizerError
from sightline.models.language.clip_text import CLIPTextConfig
from sightline.models.outputs import EncoderOutput
from sightline.nn import MLP, Attention, Block, CrossBlock, LayerNorm, Stack, attention_bias


class CoCaText(nn.Module):
    """The unimodal half. Texts are padded to the context length, because the place of [CLS] follows from it.

    correct_mask: whether padding is hidden where it stands. The released weights were trained with the mask one place
    too far right (open_clip's "legacy" mask), and need it so.
    """

    def __init__(self, c: CLIPTextConfig, pad_id: int, *, correct_mask: bool = False) -> None:
        super().__init__()
        self.pad_id, self.correct_mask, self.limit = pad_id, correct_mask, c.max_position_embeddings
        self.words = nn.Embedding(c.vocab_size, c.hidden_size)
        self.class_token = nn.Parameter(torch.randn(c.hidden_size) * 0.01)
        self.positions = nn.Embedding(c.max_position_embeddings + 1, c.hidden_size)
        self.encoder = Stack(
            Block.pre_norm(c.hidden_size, c.num_attention_heads, c.intermediate_size, c.hidden_act, c.layer_norm_eps)
            for _ in range(c.num_hidden_layers)
        )
        self.norm = LayerNorm(c.hidden_size, c.layer_norm_eps)

    def forward(
        self,
        input_ids: Int[Tensor, "batch tokens"],
        attention_mask: Int[Tensor, "batch tokens"] | None = None,
        *,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> EncoderOutput:
        """attention_mask: 1 = real; without one, real is what is not the padding id."""
        length = input_ids.shape[1] + 1
        if length > self.limit + 1:
            raise TokenizerError(f"a text of {length - 1} tokens is longer than the {self.limit} this model reads.")
        words = self.words(input_ids)
        tokens = torch.cat([words, self.class_token.expand(words.shape[0], 1, -1)], dim=1)
        real = (input_ids != self.pad_id) if attention_mask is None else attention_mask.bool()
        always = real.new_ones(real.shape[0], 1)
        real = torch.cat([real, always] if self.correct_mask else [always, real], dim=1)
        out = self.encoder(
            tokens + self.positions.weight[:length],
            bias=attention_bias(length, length, like=tokens, causal=True, padding=real),
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        return EncoderOutput(out.tokens[:, :-1], self.norm(out.tokens[:, -1]), out.hidden_states, out.attentions)


class CoCaDecoder(nn.Module):
    """The multimodal half: word vectors and picture tokens in, logits over the vocabulary out."""

    def __init__(
        self, hidden: int, heads: int, intermediate: int, layers: int, act: str, eps: float, vocab: int
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block.pre_norm(hidden, heads, intermediate, act, eps) for _ in range(layers))
        self.cross = nn.ModuleList(
            CrossBlock(
                Attention(hidden, heads, context=hidden),
                MLP(hidden, intermediate, act),
                LayerNorm(hidden, eps),
                LayerNorm(hidden, eps),
                LayerNorm(hidden, eps),
            )
            for _ in range(layers)
        )
        self.norm = LayerNorm(hidden, eps)
        self.vocabulary = nn.Linear(hidden, vocab, bias=False)

    def forward(
        self, words: Float[Tensor, "batch tokens hidden"], picture: Float[Tensor, "batch queries hidden"]
    ) -> Float[Tensor, "batch tokens vocab"]:
        for block, cross in zip(self.blocks, self.cross, strict=True):
            words, _ = block(words, causal=True)
            words, _ = cross(words, picture)
        logits: Tensor = self.vocabulary(self.norm(words))
        return logits
