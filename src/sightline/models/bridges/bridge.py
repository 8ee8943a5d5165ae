"""What every bridge is: vision tokens in, language tokens out. A bridge is chosen by one word, `kind`.

tokens [B, N, vision_hidden] → [B, M, text_hidden]; M is N (linear, MLP), N / factor² (pixel shuffle) or a fixed number
of queries (Q-Former, Perceiver, attention pooling).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sightline.errors import ConfigError
from sightline.hub import Config

Grid = tuple[int, int]  # rows, columns of patches
Padding = Bool[Tensor, "batch tokens"] | Int[Tensor, "batch tokens"]  # 1: a real token, 0: padding


@dataclass(frozen=True, kw_only=True)
class BridgeConfig(Config):
    """`kind` is enough. What is None takes the size that was published for the kind; a kind uses only what it needs.

    act: activation. bias: of linear, MLP. queries: how many tokens come out. hidden: width inside (Q-Former). layers,
    heads, head_size, kv_heads, intermediate: of the blocks. eps: of the norms. scale_factor: of the pixel shuffle.
    cross_attention_frequency: every how many layers the Q-Former looks at the picture. vocab_size: makes a Q-Former
    that reads a text too (InstructBLIP). norm_heads: queries and keys are normed head by head (Perceiver).
    """

    model_type: ClassVar[str] = "bridge"
    kind: str = "mlp2x_gelu"
    act: str | None = None
    bias: bool = True
    queries: int | None = None
    hidden: int | None = None
    num_layers: int | None = None
    heads: int | None = None
    head_size: int | None = None
    kv_heads: int | None = None
    intermediate: int | None = None
    eps: float | None = None
    scale_factor: int = 2
    cross_attention_frequency: int = 2
    vocab_size: int | None = None
    norm_heads: bool = False


class Bridge(nn.Module):
    """Base of all bridges. `forward` takes tokens without [CLS] unless the bridge may see it (`needs_grid` False)."""

    needs_grid: ClassVar[bool] = False

    def __init__(self, vision_hidden: int, text_hidden: int) -> None:
        super().__init__()
        self.vision_hidden, self.text_hidden = vision_hidden, text_hidden

    def forward(
        self,
        tokens: Float[Tensor, "batch tokens vision_hidden"],
        grid: Grid | None = None,
        padding: Padding | None = None,
    ) -> Float[Tensor, "batch language_tokens text_hidden"]:
        """grid: how the tokens lie in the picture. padding: 0 marks tokens that nobody may read.

        A bridge that keeps every token keeps its place too, so the same `padding` holds for what comes out.
        """
        raise NotImplementedError

    def tokens_out(self, tokens: int | Grid) -> int:
        """How many language tokens come of so many vision tokens, or of a grid of them."""
        raise NotImplementedError

    def check(self, tokens: Tensor, grid: Grid | None, padding: Tensor | None) -> None:
        """Raise ConfigError, one sentence, for tokens that do not belong to this bridge."""
        _, count, width = tokens.shape
        if width != self.vision_hidden:
            raise ConfigError(
                f"this bridge reads vision tokens of width {self.vision_hidden} and was given width {width}; "
                "build it with the hidden_size of the vision tower."
            )
        if grid is not None and grid[0] * grid[1] != count:
            raise ConfigError(
                f"a grid of {grid[0]}×{grid[1]} has {grid[0] * grid[1]} tokens and the bridge was given {count}; "
                "drop [CLS] or give no grid."
            )
        if padding is not None and tuple(padding.shape) != tuple(tokens.shape[:2]):
            raise ConfigError(
                f"padding has the shape {list(padding.shape)} and the tokens {list(tokens.shape[:2])}; "
                "give one number per token."
            )


def count(tokens: int | Grid) -> int:
    """So many tokens, however they were named."""
    return tokens if isinstance(tokens, int) else tokens[0] * tokens[1]
