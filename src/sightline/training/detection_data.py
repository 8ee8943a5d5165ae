"""Pictures with boxes of your own: a COCO file (instances_*.json) and the folder of its pictures."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int, UInt8

from sightline.errors import DataError, PictureError
from sightline.media import read_picture

LARGEST = 4 << 30  # bytes of a COCO file
BESIDE = ("", "images", "pictures", "train2017", "val2017", "../images", "../train2017", "../val2017")


@runtime_checkable
class BoxSource(Protocol):
    """What batches are made from. `things` gives labels and boxes (left, top, right, bottom in the picture's pixels)."""

    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def source(self) -> str: ...
    @property
    def problems(self) -> list[str]: ...
    def __len__(self) -> int: ...
    def name(self, number: int) -> str: ...
    def picture(self, number: int) -> UInt8[np.ndarray, "height width 3"]: ...
    def things(self, number: int) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, "n 4"]]: ...
    def fingerprint(self) -> str: ...


@dataclass(frozen=True, eq=False)
class CocoBoxes:
    """A COCO file as labels and boxes per picture. Labels count the categories in the order of their ids.

    names: paths of pictures. sizes: (width, height) as the file says. rows: per picture labels [n], boxes [n, 4],
    and which of them are crowds (many things in one box: not learned, and ignored in scores).
    problems: annotations that were left out, a sentence each.
    """

    source: str
    names: tuple[Path, ...]
    sizes: tuple[tuple[int, int], ...]
    rows: tuple[tuple[np.ndarray, np.ndarray, np.ndarray], ...]
    classes: tuple[str, ...]
    problems: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.names)

    def name(self, number: int) -> str:
        return str(self.names[number])

    def picture(self, number: int) -> UInt8[np.ndarray, "height width 3"]:
        """Upright pixels. Raises PictureError for a file that cannot be read or is not of the size that was labelled."""
        picture = read_picture(self.names[number])
        if picture.original_size != self.sizes[number]:
            (width, height), (said_width, said_height) = picture.original_size, self.sizes[number]
            raise PictureError(
                f"{self.names[number]} is {width}×{height} upright, but its boxes were drawn on "
                f"{said_width}×{said_height}."
            )
        return picture.pixels

    def things(self, number: int) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, "n 4"]]:
        labels, boxes, crowd = self.rows[number]
        return labels[~crowd], boxes[~crowd]

    def fingerprint(self) -> str:
        hashed = hashlib.sha256(repr((self.classes, [str(n) for n in self.names], self.sizes)).encode())
        for labels, boxes, crowd in self.rows:
            hashed.update(labels.tobytes() + boxes.tobytes() + crowd.tobytes())
        return hashed.hexdigest()[:32]


def read_coco(path: str | Path, pictures: str | Path | None = None) -> CocoBoxes:
    """Read instances_*.json. pictures: their folder; by default beside the file, or in images/, train2017/ and the like.

    Boxes without area or with numbers that are not finite are left out and listed; what reaches outside is cut at the
    edge. Raises DataError for a file that is not of this kind, names no picture, or whose pictures are not there.
    """
    path = Path(path)
    data = _json(path)
    try:
        categories = {int(c["id"]): str(c["name"]) for c in sorted(data["categories"], key=lambda c: int(c["id"]))}
        images = {int(i["id"]): (str(i["file_name"]), int(i["width"]), int(i["height"])) for i in data["images"]}
        annotations = list(data["annotations"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path} is not a COCO file ({type(error).__name__}: {error}); expected images (id, file_name, width, "
            f"height), categories (id, name) and annotations (image_id, category_id, bbox)."
        ) from None
    if not images or not categories:
        raise DataError(f"{path} names {len(images)} pictures and {len(categories)} categories; it needs some of both.")
    wrong = [name for name, width, height in images.values() if width < 1 or height < 1]
    if wrong:
        raise DataError(f"{path} says that {wrong[0]} has no area; give its width and height in pixels.")
    order, labels = list(images), {number: i for i, number in enumerate(categories)}
    found: dict[int, list[tuple[int, list[float], bool]]] = {number: [] for number in order}
    problems: list[str] = []
    for count, one in enumerate(annotations):
        try:
            image, kind = int(one["image_id"]), int(one["category_id"])
            box, crowd = [float(v) for v in one["bbox"]], bool(one.get("iscrowd", 0))
            if image not in images or kind not in labels or len(box) != 4:
                raise ValueError("it names a picture or category that the file has not, or is no box of four numbers")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            problems.append(f"annotation {count}: left out ({error})")
            continue
        edges = _edges(box, *images[image][1:])
        if edges is None:
            problems.append(f"annotation {count} of {images[image][0]}: its box {box} has no area inside the picture")
            continue
        found[image].append((labels[kind], edges, crowd))
    folder = _folder(path, [images[n][0] for n in order], pictures)
    return CocoBoxes(
        source=str(path), names=tuple(folder / images[n][0] for n in order),
        sizes=tuple(images[n][1:] for n in order), rows=tuple(_arrays(found[n]) for n in order),
        classes=tuple(categories.values()), problems=problems,
    )  # fmt: skip


def _arrays(rows: Sequence[tuple[int, list[float], bool]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    labels = np.array([label for label, _, _ in rows], np.int64)
    boxes: np.ndarray = np.array([box for _, box, _ in rows], np.float32).reshape(-1, 4)
    return labels, boxes, np.array([crowd for _, _, crowd in rows], bool)


def _edges(box: Sequence[float], width: int, height: int) -> list[float] | None:
    """Left, top, width, height → edges inside the picture; None without area."""
    if not all(math.isfinite(v) for v in box):
        return None
    left, top = max(0.0, box[0]), max(0.0, box[1])
    right, bottom = min(float(width), box[0] + box[2]), min(float(height), box[1] + box[3])
    return [left, top, right, bottom] if right > left and bottom > top else None


def _folder(path: Path, names: Sequence[str], pictures: str | Path | None) -> Path:
    if any(Path(name).is_absolute() or ".." in Path(name).parts for name in names):
        raise DataError(f"{path} names pictures outside its folder; file_name must be relative, without '..'.")
    places = [Path(pictures)] if pictures is not None else [path.parent / beside for beside in BESIDE]
    for place in places:
        if any((place / name).is_file() for name in names[:20]):
            return place
    where = f"in {pictures}" if pictures is not None else f"beside {path} nor in the usual folders there"
    raise DataError(f"None of the pictures of {path} (first: {names[0]}) lies {where}; say where with --pictures.")


def _json(path: Path) -> Mapping[str, Any]:
    try:
        if path.stat().st_size > LARGEST:
            raise DataError(f"{path} is larger than {LARGEST >> 30} GB; split it.")
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path} cannot be read ({(error.strerror or str(error)).lower()}).") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid JSON ({error}).") from None
    if not isinstance(data, dict):
        raise DataError(f"{path} holds a {type(data).__name__}; a COCO file is a JSON object.")
    return data
