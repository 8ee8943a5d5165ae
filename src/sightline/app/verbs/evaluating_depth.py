"""evaluate depth: predicted beside true depth, on drawn scenes or on a folder of RGB-D pictures."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from sightline.app.options import MEASURES
from sightline.app.verbs.depth import open_depth, with_rule
from sightline.app.verbs.embed import Progress
from sightline.app.verbs.evaluating import Evaluation, evaluated
from sightline.app.verbs.opening import ModelLike
from sightline.errors import SightlineError, UsageError
from sightline.evaluation.depth import ALIGNMENTS, FARTHEST, PAIRS
from sightline.evaluation.depth_records import depth_record
from sightline.evaluation.tabletop import FIRST_SEED
from sightline.hub.manifest import installed_version
from sightline.media import DepthMap, Picture
from sightline.media.aligned import View
from sightline.models.contrastive.dual import weights_digest
from sightline.models.depth.depth_anything import DepthAnything
from sightline.models.depth.processor import Rule
from sightline.training.depth_data import DepthFolder
from sightline.worlds import tabletop

WORLD = re.compile(r"tabletop(?::(?P<split>[^:]*))?(?::(?P<count>[^:]*))?")  # tabletop:SPLIT:SCENES
SCENES = 1000
CAMERAS = ("known", "assumed")


class _Views:
    """The views of a source, one after the other; problems: a line for each that could not be read."""

    def __init__(self, data: str | Path | DepthFolder, size: int, limit: int | None, **stated: float | None) -> None:
        self.problems: list[str] = []
        self.digest = hashlib.sha256()
        match = None if isinstance(data, DepthFolder) else WORLD.fullmatch(str(data))
        if match is not None and not Path(str(data)).exists():
            split, count = match["split"] or "test", match["count"] or str(SCENES)
            if split not in tabletop.SPLITS or not count.isdecimal() or int(count) < 1:
                raise UsageError(
                    f"{data} names no scenes; write tabletop:SPLIT:NUMBER, as in tabletop:test:1000, with a split of "
                    f"{', '.join(tabletop.SPLITS)}."
                )
            self.total = min(int(count), limit or int(count))
            self.source, self.split = f"worlds.tabletop, {split}, {size} px", f"from seed {FIRST_SEED}"
            self.views = self._scenes(split, size)
        else:
            folder = data if isinstance(data, DepthFolder) else DepthFolder(data, **stated)
            self.total = min(len(folder), limit or len(folder))
            self.problems += folder.problems
            self.source, self.split = folder.source, folder.fingerprint()
            self.views = self._folder(folder)

    def _scenes(self, split: str, size: int) -> Iterator[View]:
        for truth in tabletop.render_many(range(FIRST_SEED, FIRST_SEED + self.total), split, size):
            name = f"{truth.scene.split}-{truth.scene.seed}"
            shown = DepthMap(truth.depth, "metre", "depth", truth.camera)
            yield View(name, Picture.from_array(truth.picture, name), shown)

    def _folder(self, folder: DepthFolder) -> Iterator[View]:
        for number in range(self.total):
            try:
                yield folder.view(number)
            except SightlineError as error:
                self.problems.append(f"{folder.names[number]}: {error}")


def evaluate_depth(
    data: str | Path | DepthFolder = f"tabletop:test:{SCENES}",
    *,
    model: ModelLike = MEASURES,
    rule: Rule | None = None,
    align: str | None = None,
    cameras: str = "known",
    scale: float | None = None,
    fov: float | None = None,
    size: int = 128,
    farthest: float = FARTHEST,
    pairs: int = PAIRS,
    limit: int | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    progress: Progress | None = None,
) -> Evaluation:
    """AbsRel, RMSE, δ1 … δ3, order of pixel pairs and coverage, means over pictures with 95 % intervals.

    data: "tabletop:SPLIT:N" (scenes of `size` pixels that are drawn by seed), or a folder as `train depth` reads it, with
        its scale and fov if it does not say them itself. The depth is scored at the size of the picture.
    align: "none" (metres as they are), "scale" or "scale-and-shift"; None: none for metres, else scale-and-shift.
    cameras: "known" lets a model with a canonical camera know each picture's focal length where the data tell it;
        "assumed" does not, so its metres show what one picture alone is worth.
    out: a folder for the record, depth.json.
    """
    network = with_rule(open_depth(model, device, dtype), rule)
    align = align or ("none" if network.unit == "metre" else "scale-and-shift")
    if align not in ALIGNMENTS:
        raise UsageError(f"align={align!r} is unknown; choose {', '.join(ALIGNMENTS)}.")
    if cameras not in CAMERAS:
        raise UsageError(f"cameras={cameras!r} is unknown; choose {' or '.join(CAMERAS)}.")
    views = _Views(data, size, limit, scale=scale, fov=fov)
    if progress is not None and hasattr(progress, "total"):  # a Meter
        progress.total = views.total
    record = depth_record(
        _predicted(network, views, cameras == "known", progress), manifest=depth_manifest(network), data={},
        alignment=align, farthest=farthest, pairs=pairs,
    )  # fmt: skip
    told = {"source": views.source, "split": views.split, "pictures_sha256": views.digest.hexdigest()[:32]}
    record = replace(
        record, data={**told, "n": len(record.answers["pictures"])}, options={**record.options, "cameras": cameras},
        problems=[*views.problems, *record.problems],
    )  # fmt: skip
    return evaluated(record, out, "depth.json")


def _predicted(
    model: DepthAnything, views: _Views, known: bool, progress: Progress | None
) -> Iterator[tuple[str, DepthMap, DepthMap]]:
    """(name, prediction, truth) of every view."""
    for number, view in enumerate(views.views, 1):
        views.digest.update(view.picture.pixels.tobytes())
        (found,) = model.estimate(view.picture, [view.depth.camera if known else None])
        yield view.name, found, view.depth
        if progress is not None:
            progress(number, len(views.problems))


def depth_manifest(model: DepthAnything) -> dict[str, Any]:
    """What the model is, as far as its depth depends on it. Hashes the weights."""
    look = model.processor.describe()
    return {
        "model_type": model.config.model_type, "weights_sha256": weights_digest(model), "unit": model.unit,
        "kind": model.kind, "canonical_focal": model.canonical,
        **{k: list(look[k]) if isinstance(look[k], tuple) else look[k] for k in ("resize", "mean", "std")},
        "dtype": str(model.dtype).removeprefix("torch."), "library_version": installed_version(),
    }  # fmt: skip
