"""locate: which boxes do these phrases mean? And how the verbs about places open their models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from sightline.app.drawing import boxes_drawn, points_drawn
from sightline.app.options import BUILT_IN, DETECTS, GROUNDS, MEASURES, SPEAKS
from sightline.app.verbs.asking import open_answerer
from sightline.app.verbs.embed import Progress, gather, name_of
from sightline.app.verbs.opening import open_embedder
from sightline.app.verbs.result import Failure, Result
from sightline.errors import PictureError, UsageError, WeightsError
from sightline.hub import Model
from sightline.hub.resolve import built_in_names
from sightline.media import Boxes, Picture, read_picture
from sightline.media.pixels import as_picture
from sightline.media.points import Points
from sightline.models.contrastive.embedder import Embedder
from sightline.models.zoo import load
from sightline.pipelines import Answerer
from sightline.pipelines.grounding import Locator, PointLocator, clean, detects, locator_of

Grounder = str | Path | Model[Any] | Answerer | Locator
Reranker = str | Path | Model[Any] | Embedder | None


@dataclass(frozen=True, eq=False)
class Found:
    """boxes: in pixels of the original upright picture, or points, of a model that points; labels index the phrases.
    file: the drawn picture."""

    picture: str
    boxes: Boxes | Points
    file: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        """Per phrase whether it names anything, and its boxes (or points), best first."""
        pointed = isinstance(self.boxes, Points)
        one, many = ("point", "points") if pointed else ("box", "boxes")
        places = self.boxes.xy if isinstance(self.boxes, Points) else self.boxes.xyxy
        phrases = []
        for number, phrase in enumerate(self.boxes.phrases):
            own = self.boxes.labels == number
            rows = sorted(
                zip(self.boxes.scores[own].tolist(), places[own].tolist(), strict=True), key=lambda row: -row[0]
            )
            found = [{one: place, "score": score} for score, place in rows]
            phrases.append({"phrase": phrase, "match": bool(found), many: found})
        record = {"picture": self.picture, "width": self.boxes.width, "height": self.boxes.height, "phrases": phrases}
        return record | ({"file": str(self.file)} if self.file else {})


@dataclass(kw_only=True)
class Located(Result):
    """found: picture by picture in the order given. locator: the name of the model that found it."""

    found: list[Found]
    locator: str

    def records(self) -> list[dict[str, Any]]:
        done = [one.to_dict() for one in self.found]
        return [*done, *({"picture": f.source, "error": f.reason} for f in self.failed)]


def locate(
    pictures: Any,
    phrases: str | Sequence[str],
    *,
    model: Grounder = GROUNDS,
    reranker: Reranker = None,
    out: str | Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    progress: Progress | None = None,
) -> Located:
    """Boxes of each phrase in each picture, or its points, where the model points (Molmo 2); a phrase that names nothing
    there has none.

    pictures: sources (file, folder, glob) or pictures in memory. model: one that grounds (LLaVA with places, Florence-2,
    Kosmos-2, PaliGemma), or a detector, whose boxes the `reranker`, a CLIP, compares with the phrase. out: a folder for
    drawn pictures. Pictures that cannot be read are in `failed`.
    """
    wanted = clean([phrases] if isinstance(phrases, str) else phrases)
    locator = open_locator(model, reranker, device, dtype)
    items, failed = gather(pictures)
    found: list[Found] = []
    for item in items:
        try:
            picture = read_picture(item) if isinstance(item, (str, Path)) else as_picture(item)
            boxes: Boxes | Points
            if isinstance(locator, PointLocator):
                boxes = locator.points(picture, wanted)
            else:
                boxes = locator.locate(picture, wanted)
            file = None if out is None else drawn(picture, boxes, Path(out), len(found))
            found.append(Found(name_of(item), boxes, file))
        except PictureError as error:
            failed.append(Failure(name_of(item), str(error)))
        if progress is not None:
            progress(len(found) + len(failed), len(failed))
    return Located(found=found, locator=locator.name, failed=failed)


def drawn(picture: Picture, boxes: Boxes | Points, folder: Path, number: int) -> Path:
    """The picture with its boxes or points as a PNG in the folder, named after its source."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = Path(picture.source).stem if Path(picture.source).suffix else "picture"
    path = folder / f"{number:04d}-{stem[:80]}.png"
    shown = points_drawn(picture, boxes) if isinstance(boxes, Points) else boxes_drawn(picture, boxes)
    Image.fromarray(shown).save(path)
    return path


# ---- models


def open_locator(
    model: Grounder = GROUNDS, reranker: Reranker = None, device: str = "auto", dtype: str = "auto"
) -> Locator:
    """A model that tells places. A built-in detector brings the built-in CLIP along when no reranker is named.

    Raises WeightsError when a built-in one is wanted that is not here.
    """
    if isinstance(model, (str, Path)):
        require_built_in(model, "a model that grounds", "--grounder (of locate: --model)")
        built_in_detector = str(model) == DETECTS
        opened: Any = open_answerer(model, device, dtype) if model == SPEAKS else load(model, device, dtype)
        reranker = BUILT_IN if reranker is None and built_in_detector else reranker
    else:
        opened = model
    ranks = None
    if reranker is not None:
        if isinstance(opened, Model) and not detects(opened):
            raise UsageError(
                f"{type(opened).__name__} finds phrases by itself; a reranker is for detectors, leave it out."
            )
        ranks = open_embedder(reranker, device, dtype, engine="eager")
    return locator_of(opened, ranks)


def open_depth(model: str | Path | Model[Any] | Any | None, device: str = "auto", dtype: str = "auto") -> Any:
    """A model that estimates depth, or None. A default that is not built in yet gives None: depth can be given instead."""
    if model is None or not isinstance(model, (str, Path)):
        opened: Any = model
    elif str(model) == MEASURES and not is_built_in(MEASURES):
        return None
    else:
        opened = load(model, device, dtype)
    if opened is not None and not hasattr(opened, "estimate"):
        raise UsageError(
            f"{type(opened).__name__} estimates no depth; name a Depth Anything checkpoint (--depth-model)."
        )
    return opened


def open_detector(model: str | Path | Model[Any] | Any, device: str = "auto", dtype: str = "auto") -> Any:
    """A detector. Raises WeightsError when the built-in one is wanted and is not here, UsageError for another model."""
    if isinstance(model, (str, Path)):
        require_built_in(model, "a DETR checkpoint (or its id, such as facebook/detr-resnet-50)", "--detector")
        model = load(model, device, dtype)
    if not detects(model):
        raise UsageError(f"{type(model).__name__} is no detector; name a DETR checkpoint (--detector).")
    return model


def is_built_in(name: str) -> bool:
    return name.removeprefix("sightline:") in built_in_names()


def require_built_in(model: str | Path, kind: str, option: str) -> None:
    """Raise WeightsError, in one sentence, for a default that this version does not bring yet."""
    if str(model) in (SPEAKS, DETECTS, MEASURES) and not is_built_in(str(model)):
        raise WeightsError(f"this version has no {model} yet; name the folder of {kind} with {option}.")
