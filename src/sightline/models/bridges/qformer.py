"""Q-Former: a small BERT whose 32 learned queries read a picture, and a text if there is one (BLIP-2: Li et al. 2023,
arXiv:2301.12597, §3.1; with the instruction: InstructBLIP, Dai et al. 2023, arXiv:2305.06500, §2.3).

queries [32, D] ┐
                ├→ norm → L × (all look at all → queries look at the picture, every 2nd layer → MLP) → queries → Linear
words   [T, D]  ┘                                    each step: x = norm(x + step(x)); queries and words have own MLPs
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sightline.errors import ConfigError, UsageError
from sightline.hub import Fused, KeyTable, Shaped
from sightline.models.bridges.bridge import Bridge, Grid, Padding
from sightline.nn import MLP, Attention, LayerNorm, PostBlock, attention_bias


class QFormerBlock(PostBlock):
    """Queries and words share the self-attention; only queries look at the picture; each kind has its own MLP."""

    def __init__(
        self,
        hidden: int,
        heads: int,
        intermediate: int,
        act: str,
        eps: float,
        *,
        context: int | None,
        text: bool,
    ) -> None:
        super().__init__(
            Attention(hidden, heads),
            MLP(hidden, intermediate, act),
            LayerNorm(hidden, eps),
            LayerNorm(hidden, eps),
            None if context is None else Attention(hidden, heads, context=context),
            None if context is None else LayerNorm(hidden, eps),
        )
        self.mlp_text = MLP(hidden, intermediate, act) if text else None
        self.norm_mlp_text = LayerNorm(hidden, eps) if text else None

    def read(
        self,
        queries: Float[Tensor, "batch queries hidden"] | None,
        words: Float[Tensor, "batch words hidden"] | None,
        picture: Float[Tensor, "batch tokens context"] | None,
        *,
        bias: Tensor | None = None,
        picture_bias: Tensor | None = None,
    ) -> tuple[Float[Tensor, "batch queries hidden"] | None, Float[Tensor, "batch words hidden"] | None]:
        """bias: who sees whom among [queries, words]; picture_bias: which vision tokens are seen."""
        together = torch.cat([part for part in (queries, words) if part is not None], dim=1)
        together, _ = self.self_attend(together, bias=bias)
        count = 0 if queries is None else queries.shape[1]
        asking, rest = together[:, :count], together[:, count:]
        if queries is not None:
            if self.cross is not None:
                asking, _ = self.cross_attend(asking, picture, bias=picture_bias)
            queries = self.feed_forward(asking)
        if words is not None:
            assert self.mlp_text is not None and self.norm_mlp_text is not None
            words = self.norm_mlp_text(rest + self.mlp_text(rest))
        return queries, words


class QFormer(nn.Module):
    """The transformer alone: queries (and words) in, queries (and words) out.

    context: width of the vision tokens. text: it has MLPs for words; vocab_size: it embeds them itself (InstructBLIP).
    """

    def __init__(
        self,
        context: int,
        hidden: int = 768,
        layers: int = 12,
        heads: int = 12,
        intermediate: int = 3072,
        act: str = "gelu",
        eps: float = 1e-12,
        *,
        cross_attention_frequency: int = 2,
        text: bool = False,
        vocab_size: int | None = None,
        max_positions: int = 512,
    ) -> None:
        super().__init__()
        text = text or vocab_size is not None
        self.words = nn.Embedding(vocab_size, hidden) if vocab_size is not None else None
        self.positions = nn.Embedding(max_positions, hidden) if vocab_size is not None else None
        self.norm = LayerNorm(hidden, eps)
        self.blocks = nn.ModuleList(
            QFormerBlock(
                hidden, heads, intermediate, act, eps,
                context=context if layer % cross_attention_frequency == 0 else None, text=text,
            )
            for layer in range(layers)
        )  # fmt: skip

    def embed(self, input_ids: Int[Tensor, "batch words"]) -> Float[Tensor, "batch words hidden"]:
        """Words and their positions, not normed yet."""
        if self.words is None or self.positions is None:
            raise ConfigError("this Q-Former reads no text; build it with the vocab_size of its tokenizer.")
        count, most = input_ids.shape[1], self.positions.num_embeddings
        if count > most:
            raise ConfigError(f"the text has {count} tokens and this Q-Former reads {most}; shorten it.")
        embedded: Tensor = self.words(input_ids) + self.positions.weight[:count]
        return embedded

    def forward(
        self,
        queries: Float[Tensor, "batch queries hidden"] | None = None,
        picture: Float[Tensor, "batch tokens context"] | None = None,
        *,
        words: Float[Tensor, "batch words hidden"] | None = None,
        words_mask: Int[Tensor, "batch words"] | None = None,
        padding: Padding | None = None,
        causal: bool = False,
    ) -> tuple[Float[Tensor, "batch queries hidden"] | None, Float[Tensor, "batch words hidden"] | None]:
        """Who is given is who is there: queries with their picture, words (as `embed` gives them), or both.

        words_mask: 0 where they are padding. padding: 0 where the picture is. Queries and words see one another; causal:
        a word sees the queries and the words up to itself, and no query sees a word (BLIP-2's ITG).
        """
        given = [part for part in (queries, words) if part is not None]
        if not given or (queries is not None and picture is None):
            raise UsageError("a Q-Former reads a picture with queries, or words, or both; give queries and picture.")
        if words is not None and self.blocks[0].mlp_text is None:
            raise ConfigError("this Q-Former reads no text; build it with text=True.")
        count, total = 0 if queries is None else queries.shape[1], sum(part.shape[1] for part in given)
        seen = prefix = picture_bias = None
        if words_mask is not None:
            seen = torch.cat([words_mask.new_ones(len(words_mask), count), words_mask], dim=1)
        if causal:
            prefix = torch.full((len(given[0]),), count, device=given[0].device)
        bias = attention_bias(total, total, like=given[0], causal=causal, padding=seen, prefix=prefix)
        if padding is not None and picture is not None:
            picture_bias = attention_bias(count, picture.shape[1], like=given[0], padding=padding)
        queries = None if queries is None else self.norm(queries)
        words = None if words is None else self.norm(words)
        for block in self.blocks:
            assert isinstance(block, QFormerBlock)
            queries, words = block.read(queries, words, picture, bias=bias, picture_bias=picture_bias)
        return queries, words


class QFormerBridge(Bridge):
    """Learned queries through the Q-Former, then one matrix into the language model."""

    def __init__(self, vision_hidden: int, text_hidden: int, qformer: QFormer, queries: int = 32) -> None:
        super().__init__(vision_hidden, text_hidden)
        hidden = qformer.norm.weight.shape[0]
        self.queries = nn.Parameter(torch.randn(queries, hidden) * 0.02)
        self.qformer = qformer
        self.project = nn.Linear(hidden, text_hidden)

    def forward(
        self,
        tokens: Float[Tensor, "batch tokens vision_hidden"],
        grid: Grid | None = None,
        padding: Padding | None = None,
        *,
        input_ids: Int[Tensor, "batch words"] | None = None,
        attention_mask: Int[Tensor, "batch words"] | None = None,
    ) -> Float[Tensor, "batch queries text_hidden"]:
        """input_ids, attention_mask: the question, in the Q-Former's own tokens (official: qformer_input_ids)."""
        self.check(tokens, grid, padding)
        words = None if input_ids is None else self.qformer.embed(input_ids)
        queries = self.queries.expand(tokens.shape[0], -1, -1)
        read, _ = self.qformer(queries, tokens, words=words, words_mask=attention_mask, padding=padding)
        projected: Tensor = self.project(read)
        return projected

    def tokens_out(self, tokens: int | Grid) -> int:
        return len(self.queries)


def _block_keys() -> KeyTable:
    """The rows of one block, which BLIP-2 and InstructBLIP share."""
    theirs, ours = "encoder.layer.{i}.", "blocks.{i}."
    return KeyTable(
        {
            theirs + "attention.attention.{query,key,value}.*": Fused(ours + "attention.qkv.*"),
            theirs + "attention.output.dense.*": ours + "attention.output.*",
            theirs + "attention.output.LayerNorm.*": ours + "norm_attention.*",
            theirs + "crossattention.attention.query.*": ours + "cross.query.*",
            theirs + "crossattention.attention.{key,value}.*": Fused(ours + "cross.key_value.*"),
            theirs + "crossattention.output.dense.*": ours + "cross.output.*",
            theirs + "crossattention.output.LayerNorm.*": ours + "norm_cross.*",
            theirs + "intermediate_query.dense.*": ours + "mlp.up.*",
            theirs + "output_query.dense.*": ours + "mlp.down.*",
            theirs + "output_query.LayerNorm.*": ours + "norm_mlp.*",
            theirs + "intermediate.dense.*": ours + "mlp_text.up.*",
            theirs + "output.dense.*": ours + "mlp_text.down.*",
            theirs + "output.LayerNorm.*": ours + "norm_mlp_text.*",
        }
    )


BLIP2_QFORMER_KEYS = _block_keys() | KeyTable({"layernorm.*": "norm.*"})
INSTRUCTBLIP_QFORMER_KEYS = _block_keys() | KeyTable(
    {
        "embeddings.word_embeddings.*": "words.*",
        "embeddings.position_embeddings.*": "positions.*",
        "embeddings.layernorm.*": "norm.*",
        "embeddings.position_ids": None,  # a buffer of old files
    }
)
_AROUND = KeyTable({"query_tokens": Shaped("queries", 1), "language_projection.*": "project.*"})
BLIP2_KEYS = BLIP2_QFORMER_KEYS.under("qformer.", "qformer.") | _AROUND  # of the whole bridge
INSTRUCTBLIP_KEYS = INSTRUCTBLIP_QFORMER_KEYS.under("qformer.", "qformer.") | _AROUND
