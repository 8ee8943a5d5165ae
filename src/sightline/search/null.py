"""When is the best hit an answer? Compare it with the best hits of texts that have none.

A search always has a best hit, and its cosine means little: it shifts with the model, the index and the wording. So
every index is calibrated with a fixed list of null prompts (null_prompts.txt) that its own model embeds:

1. A picture's *fit* to a text is its cosine in units of what this picture gives unrelated texts:
   fit = (cosine − mean) / standard deviation, both over all null prompts. Pictures that score high on everything (a
   logo, a plain wall) lose their head start. [Z-norm in speaker verification: Auckenthaler et al. 2000]
2. The nonsense and abstract prompts show nothing that can be seen; the best fit each of them gets on this index is
   what chance gives on an index of this size. (Prompts that name things help in step 1 only: an index may hold them.)
3. A hit's percentile is the share of those best fits that are worse than its own; it is a match from
   `min_percentile` on.

So a nonsense text matches about as rarely as 100 − min_percentile says, for 8 pictures as for a million, whatever the
model, and a text that half of the index answers is not punished for it. A picture as the query is compared with what
the index's own pictures score with their nearest neighbours (other files than themselves): its hits match when they
are nearer than `picture_percentile` of those are.
"""

from __future__ import annotations

import dataclasses
from functools import cache
from importlib import resources

import numpy as np
from jaxtyping import Float32
from safetensors import SafetensorError
from safetensors.numpy import load, save

from sightline.errors import StoreError

MIN_PERCENTILE = 99.0
PICTURE_PERCENTILE = 50.0
NOTE = "calibration"
GROWTH = 1.1  # calibrate again when the index holds more than this many times the rows it had


@cache
def null_prompts() -> tuple[list[str], int]:
    """(prompts, how many of the first show nothing)."""
    parts: dict[str, list[str]] = {"nonsense": [], "abstract": [], "things": []}
    part: list[str] = []
    text = resources.files("sightline.search").joinpath("null_prompts.txt").read_text(encoding="utf-8")
    for line in text.splitlines():
        if line.startswith("[") and line[1:-1] in parts:
            part = parts[line[1:-1]]
        elif line and not line.startswith("# "):
            part.append(line)
    blank = parts["nonsense"] + parts["abstract"]
    return blank + parts["things"], len(blank)


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What chance gives on one index.

    nulls: unit vectors of the null prompts, the first `len(best)` of which show nothing.
    best: sorted best fits of those. nearest: sorted cosines of sampled pictures to their nearest neighbours.
    rows: how many rows the index had.
    """

    nulls: Float32[np.ndarray, "prompts dim"]
    best: Float32[np.ndarray, " blank"]
    nearest: Float32[np.ndarray, " sampled"]
    rows: int

    def fits(
        self, pictures: Float32[np.ndarray, "n dim"], query: Float32[np.ndarray, " dim"]
    ) -> Float32[np.ndarray, " n"]:
        """How far above unrelated texts this text is, for each picture, in standard deviations."""
        mean, deviation = spread(pictures @ self.nulls.T)
        fits: Float32[np.ndarray, " n"] = (pictures @ query - mean[:, 0]) / deviation[:, 0]
        return fits

    def text_percentiles(
        self, pictures: Float32[np.ndarray, "n dim"], query: Float32[np.ndarray, " dim"]
    ) -> Float32[np.ndarray, " n"]:
        return _percentiles(self.best, self.fits(pictures, query))

    def picture_percentiles(self, scores: Float32[np.ndarray, " n"]) -> Float32[np.ndarray, " n"]:
        return _percentiles(self.nearest, scores)

    def stale(self, rows: int) -> bool:
        """Whether the index has grown too much; one that shrank is judged a little too strictly, never too mildly."""
        return rows > self.rows * GROWTH or (self.rows > 0 and rows < self.rows / 2)

    def to_bytes(self) -> bytes:
        rows = np.array([self.rows], np.int64)
        return bytes(save({"nulls": self.nulls, "best": self.best, "nearest": self.nearest, "rows": rows}))

    @classmethod
    def from_bytes(cls, data: bytes) -> Calibration:
        try:
            tensors = load(data)
            return cls(tensors["nulls"], tensors["best"], tensors["nearest"], int(tensors["rows"][0]))
        except (SafetensorError, KeyError, IndexError, ValueError) as error:
            raise StoreError(f"the calibration is damaged ({error}); run `sightline index` on it again.") from None


def spread(cosines: Float32[np.ndarray, "n prompts"]) -> tuple[Float32[np.ndarray, "n 1"], Float32[np.ndarray, "n 1"]]:
    """Mean and standard deviation of each picture's cosines to the null prompts."""
    mean = cosines.mean(axis=1, keepdims=True)
    return mean, np.maximum(cosines.std(axis=1, keepdims=True), 1e-6)


def _percentiles(
    null: Float32[np.ndarray, " null"], values: Float32[np.ndarray, " n"]
) -> Float32[np.ndarray, " n"]:
    """Share of the null that is worse, 0 … 100; 0 when there is no null to compare with."""
    if not len(null):
        return np.zeros(len(values), np.float32)
    return (100 * np.searchsorted(null, values, side="left") / len(null)).astype(np.float32)
