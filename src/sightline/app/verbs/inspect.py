"""inspect tokens: follow one picture from pixels to a vector, with the shape at every stage and figures to look at."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from sightline.app import figures
from sightline.app.options import BUILT_IN
from sightline.app.verbs.opening import ModelLike, open_embedder, open_model
from sightline.app.verbs.result import Failure, Result
from sightline.errors import DataError, PictureError, UsageError
from sightline.hub import Model
from sightline.media import Picture, read_picture
from sightline.models.contrastive.dual import DualEncoder
from sightline.nn import GridPositions, PatchEmbedding

MOST_ROWS = 24  # pictures or texts in one matrix
MOST_PLACES = 4  # texts that are looked for patch by patch


@dataclass(frozen=True)
class Stage:
    """One step on the way: what it is called, the shape that leaves it, and what happens there."""

    name: str
    shape: tuple[int, ...]
    what: str


@dataclass(frozen=True)
class Match:
    """Picture × text cosines of one checkpoint. diagonal and rest: their means; first: share of pictures whose own
    text is the most similar one (only where texts are paired with pictures)."""

    model: str
    cosines: Float[np.ndarray, "pictures texts"]
    diagonal: float | None = None
    rest: float | None = None
    first: float | None = None


@dataclass(kw_only=True)
class Tokens(Result):
    picture: str
    model: str
    stages: list[Stage]
    grid: tuple[int, int]
    patch: int
    pictures: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    matches: list[Match] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)


def inspect_tokens(
    pictures: str | Path | Sequence[str | Path] | None = None,
    *,
    texts: Sequence[str] = (),
    pairs: str | Path | None = None,
    model: ModelLike = BUILT_IN,
    before: ModelLike | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    dtype: str = "float32",
) -> Tokens:
    """Show how a picture becomes tokens, and which texts it is similar to.

    pictures: the first one is followed stage by stage; all are rows of the matrix. texts: columns of the matrix.
    pairs: a JSON-lines file of {"image", "caption" or "captions"}; its first 24 pairs are both.
    before: a second checkpoint, shown beside: similarity before and after training. out: where figures are written.
    """
    paths = [pictures] if isinstance(pictures, (str, Path)) else list(pictures or ())
    paired = pairs is not None
    if pairs is not None:
        read = read_pairs(Path(pairs))
        paths, texts = paths if paths else [*paths, *(p for p, _ in read)], [*texts, *(t for _, t in read)]
        paired = len(paths) == len(texts)
    if not paths:
        raise UsageError("no picture was given; name at least one picture or --pairs FILE.")
    opened = open_model(model, device, dtype)
    first = read_picture(paths[0])
    result, figure_set = follow(opened, first)
    result.model = str(model) if isinstance(model, (str, Path)) else type(opened).__name__
    if texts:
        checkpoints = (
            [("after", opened)]
            if before is None
            else [("before", open_model(before, device, dtype)), ("after", opened)]
        )
        kept, failed = _readable(paths[:MOST_ROWS])
        result.failed = failed
        result.pictures, result.texts = [str(p.source) for p in kept], list(texts[:MOST_ROWS])
        for name, checkpoint in checkpoints:
            result.matches.append(match(name, checkpoint, kept, result.texts, paired and not failed))
        figure_set["words"] = _words_figure(result.matches, kept, result.texts)
        places = _places_figure(opened, first, result.texts[:MOST_PLACES], result.grid)
        figure_set |= {"places": places} if places is not None else {}
    if out is not None:
        folder = Path(out)
        folder.mkdir(parents=True, exist_ok=True)
        for name, figure in figure_set.items():
            figure.save(folder / f"{name}.png")
            result.files.append(folder / f"{name}.png")
    return result


def follow(model: Model[Any], picture: Picture) -> tuple[Tokens, dict[str, Image.Image]]:
    """Every stage of one picture, from the model's own forward, and the figures of it."""
    embedding = next((m for m in model.modules() if isinstance(m, PatchEmbedding)), None)
    if embedding is None or model.processor is None or model.config.model_type == "siglip2":
        raise UsageError(
            f"{type(model).__name__} does not cut a picture into a fixed grid of patches; try a ViT, CLIP or SigLIP."
        )
    positions = next((m for m in model.modules() if isinstance(m, GridPositions)), None)
    inputs = {k: v.to(model.device, model.dtype) for k, v in model.processor(pictures=[picture]).items()}
    pixels = inputs["pixel_values"]
    with torch.inference_mode():
        tokens, grid = embedding(pixels)
        embedded, out = _run(model, inputs)
    hidden = tokens.shape[-1]
    states: tuple[Tensor, ...] = out.hidden_states or ()
    start, end = states[0][0], states[-1][0]
    extra = start.shape[0] - tokens.shape[1]
    height, width = pixels.shape[-2:]
    p = embedding.patch
    original = (picture.original_size[1], picture.original_size[0], 3)
    stages = [
        Stage("picture", original, "height × width × RGB, upright"),
        Stage("processor", (height, width, 3), "resized, cropped, rescaled to 0…1, mean and std taken out"),
        Stage(
            "cut",
            (*grid, p, p, 3),
            f"{grid[0]} × {grid[1]} = {tokens.shape[1]} patches of {p} × {p} × 3 = {p * p * 3} values",
        ),
        Stage("flatten", (tokens.shape[1], p * p * 3), "each patch as one row of numbers"),
        Stage("linear", tuple(tokens.shape[1:]), f"one matrix {p * p * 3} × {hidden} makes a token of each patch"),
    ]
    if extra:
        stages.append(
            Stage("+ [CLS]", tuple(start.shape), "one learned token in front, which will stand for the whole picture")
        )
    if positions is not None:
        stages.append(
            Stage("+ positions", tuple(start.shape), "a learned vector per place, or the order would be lost")
        )
    stages.append(
        Stage(f"{len(states) - 1} blocks", tuple(end.shape), "attention between all tokens, then an MLP for each")
    )
    how = "the [CLS] token alone" if extra else "one learned query attends to all tokens"
    stages.append(Stage("pooled", (hidden,), f"{how}: one vector for the picture"))
    if hasattr(model, "classifier") and embedded is not None:
        stages.append(Stage("classes", tuple(embedded.shape[1:]), "logits, one per class"))
    elif embedded is not None:
        if hasattr(model, "visual_projection"):
            stages.append(Stage("projection", tuple(embedded.shape[1:]), "into the space shared with words"))
        stages.append(Stage("unit length", tuple(embedded.shape[1:]), "so that a dot product is a cosine"))
    shown = _pixels(model, pixels[0])
    drawn = _figures(shown, p, grid, tokens[0], end[extra:])
    if positions is not None:
        drawn["positions"] = _position_figure(positions, grid)
    return Tokens(picture=picture.source, model="", stages=stages, grid=grid, patch=p), drawn


def match(name: str, model: Model[Any], pictures: list[Picture], texts: list[str], paired: bool) -> Match:
    """Cosines of pictures and texts, and how well pairs stand out."""
    embedder = open_embedder(model)
    rows = [e.vector for e in embedder.pictures(pictures) if e.vector is not None]
    cosines = np.stack(rows) @ embedder.texts(texts).T
    if not paired or cosines.shape[0] != cosines.shape[1] or len(cosines) < 2:
        return Match(name, cosines)
    own = np.eye(len(cosines), dtype=bool)
    first = float((cosines.argmax(axis=1) == np.arange(len(cosines))).mean())
    return Match(name, cosines, float(cosines[own].mean()), float(cosines[~own].mean()), first)


def read_pairs(path: Path) -> list[tuple[Path, str]]:
    """The first pairs of a JSON-lines file; pictures are named relative to it. Raises DataError with the line."""
    found: list[tuple[Path, str]] = []
    try:
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                if len(found) == MOST_ROWS:
                    break
                if line.strip():
                    record = json.loads(line)
                    caption = record.get("caption") or record["captions"][0]
                    found.append((path.parent / record["image"], str(caption)))
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; name a JSON-lines file of pairs.") from None
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise DataError(f'{path}, line {number}, is not {{"image": …, "caption": …}}; mend the line.') from None
    return found


def _run(model: Any, inputs: dict[str, Tensor]) -> tuple[Tensor | None, Any]:
    """The vector or logits at the end, and the picture tower's own output with all hidden states."""
    if hasattr(model, "encode_image"):
        embedded, out = model.encode_image(**inputs, output_hidden_states=True)
        return embedded, out
    out = model(**inputs, output_hidden_states=True)
    return getattr(out, "logits", None), out


def _pixels(model: Model[Any], values: Float[Tensor, "3 height width"]) -> np.ndarray:
    """What the model sees, as a picture again: mean and std put back."""
    look = model.processor.pictures
    mean, std = (torch.tensor(getattr(look, n, (0.5,) * 3)).view(3, 1, 1) for n in ("image_mean", "image_std"))
    picture = (values.float().cpu() * std + mean).clamp(0, 1)
    return np.ascontiguousarray((picture * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())


def _figures(
    shown: np.ndarray, patch: int, grid: tuple[int, int], first: Tensor, last: Tensor
) -> dict[str, Image.Image]:
    drawn = {
        "grid": figures.patch_grid(shown, patch),
        "sequence": figures.patch_sequence(shown, patch, columns=2 * grid[1]),
    }
    if first.shape[0] <= 1024:
        maps = [_cosines(first), _cosines(last)]
        titles = ("patches × patches after the linear map (cosine)", "… and after the last block")
        drawn["patches"] = figures.beside(
            [figures.heat_map(m, title=t, longest=560) for m, t in zip(maps, titles, strict=True)]
        )
        centre = grid[0] // 2 * grid[1] + grid[1] // 2
        over = [figures.on_picture(shown, m[centre].reshape(grid), f"similar to patch {centre}, {w}")
                for m, w in zip(maps, ("linear map", "last block"), strict=True)]  # fmt: skip
        drawn["similar"] = figures.beside(over)
    return drawn


def _cosines(tokens: Tensor) -> np.ndarray:
    unit = F.normalize(tokens.detach().float().cpu(), dim=-1)
    return (unit @ unit.T).numpy()


def _position_figure(positions: GridPositions, grid: tuple[int, int]) -> Image.Image:
    """For every place, how similar its position vector is to all others: one small map per place (ViT, figure 7)."""
    with torch.inference_mode():
        table = positions(grid)[positions.prefix :]
    cosines = _cosines(table)
    rows, columns = grid
    step = max(1, -(-max(grid) // 14))
    picked = [(r, c) for r in range(0, rows, step) for c in range(0, columns, step)]
    across = len(range(0, columns, step))
    tile, gap = 48, 4
    sheet = Image.new(
        "RGB", (across * (tile + gap) + gap, -(-len(picked) // across) * (tile + gap) + gap), figures.PAPER
    )
    for number, (row, column) in enumerate(picked):
        one = figures.colours(cosines[row * columns + column].reshape(grid).astype(np.float64), -0.5, 1.0)
        small = Image.fromarray(one).resize((tile, tile), Image.Resampling.NEAREST)
        sheet.paste(small, (gap + number % across * (tile + gap), gap + number // across * (tile + gap)))
    return sheet


def _words_figure(matches: list[Match], pictures: list[Picture], texts: list[str]) -> Image.Image:
    labels = [t if len(t) <= 40 else t[:39] + "…" for t in texts]
    thumbnails = [Image.fromarray(p.pixels) for p in pictures]
    low, high = (float(pick([pick(m.cosines.flat) for m in matches])) for pick in (min, max))  # one scale for both
    title = {"before": "before training (cosine)", "after": "after training (cosine)"} if len(matches) > 1 else {}
    return figures.beside(
        [figures.heat_map(m.cosines, column_labels=labels, thumbnails=thumbnails, title=title.get(m.model, "cosine"),
                          low=low, high=high)
         for m in matches]
    )  # fmt: skip


def _places_figure(model: Model[Any], picture: Picture, texts: list[str], grid: tuple[int, int]) -> Image.Image | None:
    """Which patches resemble a text: cosines of patch tokens in the shared space. None where patches are not in it."""
    if not isinstance(model, DualEncoder):
        return None
    inputs = {k: v.to(model.device, model.dtype) for k, v in model.processor(pictures=[picture]).items()}
    try:
        with torch.inference_mode():
            patches = F.normalize(
                model.patch_features(model.encode_image(**inputs)[1])[0].float().cpu(), dim=-1
            ).numpy()
    except UsageError:
        return None
    shown = _pixels(model, inputs["pixel_values"][0])
    cosines = open_embedder(model).texts(texts) @ patches.T
    drawn = [figures.on_picture(shown, row.reshape(grid), text[:56]) for row, text in zip(cosines, texts, strict=True)]
    return figures.beside(drawn)


def _readable(paths: Sequence[str | Path]) -> tuple[list[Picture], list[Failure]]:
    kept, failed = [], []
    for path in paths:
        try:
            kept.append(read_picture(path))
        except PictureError as error:
            failed.append(Failure(str(path), str(error)))
    return kept, failed
