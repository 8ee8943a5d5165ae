"""inspect bridges: MLP, Q-Former or Perceiver? What each makes of one picture, how large it is and how long it takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sightline.app.options import BUILT_IN
from sightline.app.verbs.opening import ModelLike, open_model
from sightline.app.verbs.result import Result
from sightline.errors import ConfigError, UsageError
from sightline.hub import Model
from sightline.media import Picture, read_picture
from sightline.models.bridges import KINDS, Bridge, BridgeConfig, build_bridge
from sightline.models.bridges.gated import idefics_block
from sightline.nn import PatchEmbedding
from sightline.runtime.bench import interleaved
from sightline.worlds import tabletop

WIDEST = 32_768  # of a language model; the widest in use has 16,384
WORDS = 32  # that look at the picture when the gated block is timed
GATED = "gated_cross_attention"


@dataclass(frozen=True)
class Crossing:
    """One bridge. tokens_out: language tokens in the sequence. reason: why it cannot be used here; then no figures."""

    kind: str
    used_by: str
    tokens_in: int
    tokens_out: int | None = None
    parameters: int | None = None
    milliseconds: float | None = None
    reason: str | None = None


@dataclass(kw_only=True)
class Bridges(Result):
    """milliseconds are medians of `runs`, for one picture, on `device` in `dtype`; the weights are random."""

    picture: str
    model: str
    grid: tuple[int, int]
    vision_hidden: int
    text_hidden: int
    runs: int
    device: str
    dtype: str
    bridges: list[Crossing]


def inspect_bridges(
    picture: str | Path | Picture | None = None,
    *,
    model: ModelLike = BUILT_IN,
    kinds: Sequence[str | BridgeConfig] | None = None,
    text_hidden: int = 2048,
    runs: int = 7,
    device: str = "auto",
    dtype: str = "float32",
) -> Bridges:
    """Send one picture through a vision tower and its tokens through every bridge.

    picture: None draws a tabletop scene. model: a checkpoint with a vision tower of fixed patches. kinds: bridges, by
    name or config; None: every kind at its published size, and a gated cross-attention block. text_hidden: width of the
    language model (2048 is TinyLlama's). Raises ConfigError for an unknown kind.
    """
    if runs < 2:
        raise UsageError(f"a median of {runs} runs says nothing; give at least 2.")
    if not 1 <= text_hidden <= WIDEST:
        raise UsageError(f"a language model of width {text_hidden} does not exist; give 1 to {WIDEST}.")
    opened = open_model(model, device, dtype)
    read = _scene() if picture is None else picture if isinstance(picture, Picture) else read_picture(picture)
    tokens, grid = vision_tokens(opened, read)
    chosen = [k if isinstance(k, BridgeConfig) else BridgeConfig(kind=k) for k in (kinds or KINDS)]
    shapes = [_shaped(config, tokens.shape[-1], text_hidden) for config in chosen]  # an unknown kind stops here
    rows = [_crossing(c, s, tokens, grid, runs) for c, s in zip(chosen, shapes, strict=True)]
    if kinds is None:
        rows.append(_gated(tokens, text_hidden, runs))
    return Bridges(
        picture=read.source,
        model=str(model) if isinstance(model, (str, Path)) else type(opened).__name__,
        grid=grid,
        vision_hidden=tokens.shape[-1],
        text_hidden=text_hidden,
        runs=runs,
        device=str(tokens.device),
        dtype=str(tokens.dtype).removeprefix("torch."),
        bridges=rows,
    )


def vision_tokens(model: Model[Any], picture: Picture) -> tuple[Tensor, tuple[int, int]]:
    """Patch tokens [1, N, hidden] as they leave the blocks, without [CLS], and the grid they lie on."""
    embedding = next((m for m in model.modules() if isinstance(m, PatchEmbedding)), None)
    if embedding is None or model.processor is None or model.config.model_type == "siglip2":
        raise UsageError(
            f"{type(model).__name__} does not cut a picture into a fixed grid of patches; try a ViT, CLIP or SigLIP."
        )
    inputs = {k: v.to(model.device, model.dtype) for k, v in model.processor(pictures=[picture]).items()}
    height, width = inputs["pixel_values"].shape[-2:]
    grid = height // embedding.patch, width // embedding.patch
    wanted = {"output_hidden_states": True}
    with torch.inference_mode():
        encode: Any = getattr(model, "encode_image", None)
        out = model(**inputs, **wanted) if encode is None else encode(**inputs, **wanted)[1]
    last: Tensor = out.hidden_states[-1]
    return last[:, last.shape[1] - grid[0] * grid[1] :], grid


def _shaped(config: BridgeConfig, vision_hidden: int, text_hidden: int) -> Bridge:
    """The bridge without weights, which costs nothing."""
    with torch.device("meta"):
        return build_bridge(config, vision_hidden, text_hidden)


def _crossing(config: BridgeConfig, shaped: Bridge, tokens: Tensor, grid: tuple[int, int], runs: int) -> Crossing:
    """Build one bridge, measure it, let it go: only one is in memory at a time."""
    used_by, count = KINDS.get(config.kind, ""), tokens.shape[1]
    try:
        expected = shaped.tokens_out(grid)
    except ConfigError as error:
        return Crossing(config.kind, used_by, count, reason=str(error))
    with tokens.device:
        bridge = build_bridge(config, shaped.vision_hidden, shaped.text_hidden).to(tokens.dtype).eval()
    with torch.inference_mode():
        made = bridge(tokens, grid).shape[1]
    assert made == expected
    return Crossing(config.kind, used_by, count, made, _size(bridge), _time(lambda: bridge(tokens, grid), tokens, runs))


def _gated(tokens: Tensor, text_hidden: int, runs: int) -> Crossing:
    """One block between two layers of the language model: no token is added to the sequence, words look at 64 latents."""
    heads = text_hidden // 64 if text_hidden % 64 == 0 else 1
    with tokens.device:
        block = idefics_block(text_hidden, tokens.shape[2], heads, 7 * text_hidden // 2).to(tokens.dtype).eval()
    words, latents = tokens.new_zeros(1, WORDS, text_hidden), tokens.new_zeros(1, 64, tokens.shape[2])
    spent = _time(lambda: block(words, latents), tokens, runs)
    used_by = f"Flamingo, IDEFICS: one block, {WORDS} words looking"
    return Crossing(GATED, used_by, tokens.shape[1], 0, _size(block), spent)


def _time(call: Callable[[], Tensor], like: Tensor, runs: int) -> float:
    """Milliseconds, the median; a GPU is waited for."""

    def once() -> None:
        with torch.inference_mode():
            call()
        if like.device.type == "cuda":
            torch.cuda.synchronize(like.device)

    return 1000 * interleaved({"bridge": once}, rounds=runs)["bridge"].median


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _scene() -> Picture:
    """A picture to look at when none is given."""
    pixels = tabletop.render(tabletop.scene(0)).picture
    return Picture(pixels, "tabletop scene 0", (pixels.shape[1], pixels.shape[0]))
