"""CoCa's picture tower: CLIP's ViT, read by many learned queries (Yu et al. 2022, arXiv:2205.01917, §3.2).

pixels → patch tokens + [CLS] → norm → L blocks → queries attend to all tokens → norm
query 0 → `pooler_output` (the embedding) · the others → `last_hidden_state` (what the decoder looks at)

One pooler serves both ends, as in open_clip's released weights; the paper cascades two.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sightline.models.outputs import EncoderOutput
from sightline.models.vision.clip_vision import CLIPVisionConfig
from sightline.nn import Attention, Block, GridPositions, LayerNorm, PatchEmbedding, QueryPooling, Stack


class CoCaVision(nn.Module):
    """queries: how many, the contrastive one included; out: width of the queries."""

    def __init__(self, c: CLIPVisionConfig, queries: int, heads: int, out: int) -> None:
        super().__init__()
        eps = c.layer_norm_eps
        self.patches = PatchEmbedding(c.patch_size, c.hidden_size, channels=c.num_channels, bias=False)
        self.class_token = nn.Parameter(torch.randn(c.hidden_size) * 0.02)
        self.positions = GridPositions(c.grid, c.hidden_size, prefix=1)
        self.norm_in = LayerNorm(c.hidden_size, eps)
        self.encoder = Stack(
            Block.pre_norm(c.hidden_size, c.num_attention_heads, c.intermediate_size, c.hidden_act, eps)
            for _ in range(c.num_hidden_layers)
        )
        self.pooling = QueryPooling(
            queries,
            Attention(out, heads, context=c.hidden_size),
            out,
            norm_queries=LayerNorm(out, eps),
            norm_context=LayerNorm(c.hidden_size, eps),
        )
        self.norm = LayerNorm(out, eps)

    def forward(
        self,
        pixel_values: Float[Tensor, "batch channels height width"],
        *,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> EncoderOutput:
        tokens, grid = self.patches(pixel_values)
        tokens = torch.cat([self.class_token.expand(tokens.shape[0], 1, -1), tokens], dim=1)
        out = self.encoder(
            self.norm_in(tokens + self.positions(grid)),
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        read = self.norm(self.pooling(out.tokens))
        return EncoderOutput(read[:, 1:], read[:, 0], out.hidden_states, out.attentions)
