"""When is the best hit an answer? Compare it with the best hits of texts that have none.

A search always has a best hit, and its cosine means little: it shifts with the model, the index and the wording (the
built-in CLIP gives nonsense a higher mean cosine than true captions). So every index is calibrated, with its own model,
by a fixed list of null prompts (null_prompts.txt) and a cohort of pictures: 64 drawn scenes (cohort.py) and 64 of its
own, by chance.

1. The *fit* of a picture and a text is their cosine, less what this text gets from other pictures (the lower quartile
   over the cohort), and then in units of what this picture gets from other texts (mean and standard deviation over the
   null prompts, shifted alike). So neither a text that lies near to all pictures nor a picture that scores on
   everything, such as a logo or a plain wall, has a head start. The quartile, and not the mean, so that a text which
   most of the index answers is not measured against its own answers.
2. The nonsense and abstract prompts describe nothing that can be seen; the best fit that each gets on this index is
   what chance gives on an index of this size. (Prompts that name things serve in step 1 only: the index may hold them.)
3. A hit's percentile is the share of those best fits that are worse than its own; it is a match from
   `min_percentile` on.

So a nonsense text matches about as rarely as 100 − min_percentile says, for 8 pictures as for a million. Step 1 is
score normalisation as in speaker verification (Z-norm, T-norm; Auckenthaler et al. 2000, doi:10.1006/dspr.1999.0360).

A picture as the query is compared with what the index's own pictures score with their nearest neighbours: its hits
match when they are nearer than PICTURE_PERCENTILE of those are.

What it cannot do: a text about something sensible that this index lacks, but nearly has (a blue mug, where there are
blue boxes and red mugs), is told apart only as far as the model tells them apart.
"""

from __future__ import annotations

import dataclasses
from functools import cache, cached_property
from importlib import resources

import numpy as np
from jaxtyping import Float32
from safetensors import SafetensorError
from safetensors.numpy import load, save

from sightline.errors import StoreError

MIN_PERCENTILE = 97.0
PICTURE_PERCENTILE = 50.0
SHATTERED = 3.0  # pieces per word from which a text looks like letters in a row
NOTE = "calibration"
LOW = 0.25  # the quantile of step 1
GROWTH = 1.1  # calibrate again when the index holds more than this many times the rows it had


def least(text: str, embedder: object, asked: float | None) -> float | None:
    """The percentile that makes a match for this text: what was asked for, else the default, else 100.

    A text that the model's tokenizer breaks into letters looks like nonsense before any picture is seen, so it has to
    beat every null prompt. It is not refused: names and rare words break up too.
    """
    pieces = getattr(embedder, "pieces_per_word", None)
    return 100.0 if asked is None and pieces is not None and pieces(text) >= SHATTERED else asked


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
class Nulls:
    """Unit vectors of null prompts and cohort, by the index's model. The cohort's drawn scenes come first."""

    prompts: Float32[np.ndarray, "prompts dim"]
    cohort: Float32[np.ndarray, "cohort dim"]

    @cached_property
    def offsets(self) -> Float32[np.ndarray, " prompts"]:
        return self.offset(self.prompts)

    def offset(self, texts: Float32[np.ndarray, "n dim"]) -> Float32[np.ndarray, " n"]:
        """What each text gets from pictures that are not about it."""
        low: Float32[np.ndarray, " n"] = np.quantile(self.cohort @ texts.T, LOW, axis=0).astype(np.float32)
        return low

    def spread(
        self, cosines: Float32[np.ndarray, "n prompts"]
    ) -> tuple[Float32[np.ndarray, "n prompts"], Float32[np.ndarray, "n 1"], Float32[np.ndarray, "n 1"]]:
        """Pictures' cosines to the null prompts → (shifted, mean and standard deviation of each picture's)."""
        shifted = cosines - self.offsets
        mean = shifted.mean(axis=1, keepdims=True)
        return shifted, mean, np.maximum(shifted.std(axis=1, keepdims=True), 1e-6)

    def fits(
        self, pictures: Float32[np.ndarray, "n dim"], text: Float32[np.ndarray, " dim"]
    ) -> Float32[np.ndarray, " n"]:
        """Step 1 for one text and many pictures."""
        _, mean, deviation = self.spread(pictures @ self.prompts.T)
        fits: Float32[np.ndarray, " n"] = (pictures @ text - self.offset(text[None])[0] - mean[:, 0]) / deviation[:, 0]
        return fits


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What chance gives on one index.

    best: sorted best fits of the prompts that show nothing. nearest: sorted cosines of sampled pictures to their
    nearest neighbours. rows: how many rows the index had.
    """

    nulls: Nulls
    best: Float32[np.ndarray, " blank"]
    nearest: Float32[np.ndarray, " sampled"]
    rows: int

    def text_percentiles(
        self, pictures: Float32[np.ndarray, "n dim"], text: Float32[np.ndarray, " dim"]
    ) -> Float32[np.ndarray, " n"]:
        return percentiles(self.best, self.nulls.fits(pictures, text))

    def picture_percentiles(self, scores: Float32[np.ndarray, " n"]) -> Float32[np.ndarray, " n"]:
        return percentiles(self.nearest, scores)

    def stale(self, rows: int) -> bool:
        """Whether the index has grown by a tenth, or shrunk to less than half."""
        return rows > self.rows * GROWTH or rows < self.rows / 2

    def to_bytes(self) -> bytes:
        tensors = {"prompts": self.nulls.prompts, "cohort": self.nulls.cohort}
        tensors |= {"best": self.best, "nearest": self.nearest, "rows": np.array([self.rows], np.int64)}
        return bytes(save(tensors))

    @classmethod
    def from_bytes(cls, data: bytes) -> Calibration:
        try:
            found = load(data)
            nulls = Nulls(found["prompts"], found["cohort"])
            return cls(nulls, found["best"], found["nearest"], int(found["rows"][0]))
        except (SafetensorError, KeyError, IndexError, ValueError) as error:
            raise StoreError(f"the calibration is damaged ({error}); run `sightline index` on it again.") from None


def percentiles(null: Float32[np.ndarray, " null"], values: Float32[np.ndarray, " n"]) -> Float32[np.ndarray, " n"]:
    """Share of the sorted null that is worse, 0 … 100; 0 when there is no null to compare with."""
    if not len(null):
        return np.zeros(len(values), np.float32)
    return (100 * np.searchsorted(null, values, side="left") / len(null)).astype(np.float32)
