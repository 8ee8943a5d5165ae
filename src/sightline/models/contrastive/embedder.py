"""Many pictures or texts → unit vectors, as fast as the machine allows.

Pictures are decoded and preprocessed in threads while the model computes; one bad file is one item with an error.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from sightline import runtime
from sightline.errors import PictureError, UsageError
from sightline.hub import Manifest
from sightline.media import Limits, Picture, decoded
from sightline.media.pixels import as_picture
from sightline.models.contrastive.calibration import dead_leaves
from sightline.models.contrastive.dual import DualEncoder
from sightline.models.language.clip_text import CLIPText
from sightline.runtime import Engine, batched, batches, precision_of

Progress = Callable[[int, int], None]  # (items done, of them failed)
Decoded = tuple[Any, Picture | PictureError]

FEW = 64  # pictures; for fewer, converting a model takes longer than it saves
CALIBRATION = 96  # pictures that int8 is fitted to and checked on; made up to half of that when there are fewer


@dataclass(frozen=True, eq=False)
class Embedded:
    """One item of the stream: its unit vector float32 [D], or the reason why there is none."""

    item: Any
    vector: Float[np.ndarray, " dim"] | None
    error: str | None = None


class ImageTower(nn.Module):
    """Pictures → unit vectors, float32: the part of a model that an engine computes."""

    def __init__(self, model: DualEncoder[Any]) -> None:
        super().__init__()
        self.model = model

    def forward(self, **pictures: Tensor) -> Float[Tensor, "batch dim"]:
        return F.normalize(self.model.image_features(**pictures).float(), dim=-1)


class Embedder:
    """A contrastive model at work.

    engine: one of runtime.ENGINES; "auto" is the fastest that is as exact as the dtype the model was loaded in.
    batch_size: pictures or texts computed at once; halved once when memory runs out.
    limits: budgets for every picture file. threads: for decoding; default one per core, at most 8.
    exact: read every pixel and resize as the official processor does. Otherwise large JPEGs are decoded at a fraction
        of their size and resized by torch, several times faster; vectors stay within cosine 0.999 (media/jpeg.py).
    """

    def __init__(
        self,
        model: DualEncoder[Any],
        engine: str = "auto",
        batch_size: int = 32,
        *,
        limits: Limits | None = None,
        threads: int | None = None,
        exact: bool = False,
    ) -> None:
        if batch_size < 1:
            raise UsageError(f"batch_size is {batch_size}; it must be at least 1.")
        model.require_weights()
        self.model, self.batch_size, self.limits = model.eval(), batch_size, limits or Limits()
        self.threads = threads or min(8, os.cpu_count() or 1)
        self.exact = exact
        self._wanted = engine
        self._engine: Engine | None = None
        self._provisional, self._asked = False, 0

    @property
    def dim(self) -> int:
        """Length of the vectors."""
        return self.model.embedding_dim

    @cached_property
    def manifest(self) -> Manifest:
        """Everything that must agree before vectors may be compared."""
        return self.model.manifest()

    def pictures(self, items: Iterable[Any], progress: Progress | None = None) -> Generator[Embedded, None, None]:
        """Embed a stream of paths (str or Path) or pictures (Picture, PIL image, uint8 array); order is kept.

        A file that cannot be read, or that has no finite vector, comes back with `error`; the rest goes on.
        """
        done = failed = 0
        stream = decoded(
            items,
            self._look,
            scaled=not self.exact,
            limits=self.limits,
            threads=self.threads,
            ahead=self.batch_size + 2 * self.threads,
            turns=self.batch_size if self.model.device.type == "cpu" else None,
            source=as_source,
        )
        sized = isinstance(items, Sized)
        self._asked += len(items) if isinstance(items, Sized) else 0
        with closing(stream):  # type: ignore[type-var]  # it is a generator
            for batch in self._batches(stream):
                self._asked += 0 if sized else len(batch)
                for result in self._embed(batch):
                    done, failed = done + 1, failed + (result.error is not None)
                    yield result
                if progress is not None:
                    progress(done, failed)

    def _batches(self, stream: Iterator[Decoded]) -> Iterator[list[Decoded]]:
        """Batches of the stream; the first one with a picture in it chooses the engine."""
        while batch := list(islice(stream, self.batch_size)):
            enough = self._wanted != "auto" or self._asked >= FEW
            undecided = self._engine is None or (self._provisional and enough)
            if undecided and any(isinstance(picture, Picture) for _, picture in batch):
                stream = chain(self._choose(batch, stream), stream)
            yield batch

    def _choose(self, batch: list[Decoded], stream: Iterator[Decoded]) -> list[Decoded]:
        """Set the engine; returns what had to be read ahead to calibrate it."""
        read_ahead: list[Decoded] = []
        pictures = [picture for _, picture in batch if isinstance(picture, Picture)]

        def calibration() -> Iterator[dict[str, Tensor]]:
            read_ahead.extend(islice(stream, max(0, CALIBRATION - len(pictures))))
            real = pictures + [picture for _, picture in read_ahead if isinstance(picture, Picture)]
            made = [as_picture(pixels) for pixels in dead_leaves(max(0, CALIBRATION // 2 - len(real)))]
            for some in batches([*real[:CALIBRATION], *made], 16):
                yield self._look(some)

        example = {name: tensor.to(self.model.device) for name, tensor in self._look(pictures[:2]).items()}
        precision, version = precision_of(self.model), self.manifest.library_version
        key = f"{self.manifest.digest} {version} {type(self.model).__name__} {precision}"
        few = self._asked < FEW
        tower = ImageTower(self.model)
        self._engine = runtime.engine(tower, example, self._wanted, key=key, calibration=calibration, few=few)
        self._provisional = few and self._wanted == "auto" and self._engine.name == "eager"
        return read_ahead

    @property
    def engine(self) -> str:
        """What computes: its name, its precision, and why it is not another; known once pictures were embedded."""
        if self._engine is None:
            return self._wanted
        note = f" ({self._engine.note})" if self._engine.note else ""
        return f"{self._engine.name} {self._engine.precision}{note}"

    def compute(self, inputs: Mapping[str, Tensor]) -> Float[Tensor, "batch dim"]:
        """Unit vectors of preprocessed pictures, by the engine that is chosen (eager before the first picture)."""
        if self._engine is None:
            self._engine, self._provisional = runtime.engine(ImageTower(self.model), inputs, "eager"), True
        return self._engine(**{name: tensor.to(self.model.device) for name, tensor in inputs.items()})

    def texts(self, texts: Sequence[str]) -> Float[np.ndarray, "texts dim"]:
        """Unit vectors float32 [N, D] of texts, in their order; texts of one length are computed together."""
        if isinstance(texts, str):
            raise UsageError("texts must be a list of strings, not one string.")
        out = np.empty((len(texts), self.dim), dtype=np.float32)
        if not len(texts):
            return out
        inputs = self.model.processor(texts=list(texts))
        causal = isinstance(getattr(self.model, "text", None), CLIPText)
        mask = inputs.get("attention_mask")
        lengths = mask.sum(dim=1) if mask is not None else torch.full((len(texts),), inputs["input_ids"].shape[1])
        order = lengths.argsort(stable=True)
        for rows in order.split(self.batch_size):
            chosen = {name: tensor[rows] for name, tensor in inputs.items()}
            if causal:  # what stands after the end of text is never read, so it need not be computed
                chosen = {"input_ids": chosen["input_ids"][:, : int(lengths[rows].max())]}
            out[rows.numpy()] = self._embed_texts(chosen)
        return out

    def pieces_per_word(self, text: str) -> float:
        """How far the tokenizer has to break words up: 1 for words it knows, several for letters in a row."""
        words = text.split()
        encode = self.model.processor.tokenizer.backend.encode
        return sum(len(encode(word, add_special_tokens=False).ids) for word in words) / max(1, len(words))

    def probabilities(
        self, image_vectors: Float[np.ndarray, "pictures dim"], text_vectors: Float[np.ndarray, "texts dim"]
    ) -> tuple[Float[np.ndarray, "pictures texts"], Float[np.ndarray, "pictures texts"]]:
        """Probabilities and raw logits, float32 [pictures, texts].

        softmax models (CLIP): each row sums to one over the given texts; sigmoid models (SigLIP): each cell alone.
        """
        with torch.inference_mode():
            pictures, texts = (
                torch.from_numpy(np.ascontiguousarray(v, dtype=np.float32)).to(self.model.device)
                for v in (image_vectors, text_vectors)
            )
            logits = self.model.logits(pictures, texts).float()
            return self.model.probabilities(logits).cpu().numpy(), logits.cpu().numpy()

    @cached_property
    def _look(self) -> Any:
        """The picture side of the processor, in its fast form where there is one and it is allowed."""
        look = self.model.processor.pictures if self.model.processor is not None else None
        if look is None:
            raise UsageError("this model came without preprocessor_config.json, so it cannot read pictures.")
        return look.fast() if not self.exact and hasattr(look, "fast") else look

    def _embed(self, batch: list[Decoded]) -> list[Embedded]:
        ready = [picture for _, picture in batch if isinstance(picture, Picture)]
        rows: list[np.ndarray] = batched(self._embed_pictures, ready, what="pictures") if ready else []
        vectors = iter(rows)
        results = []
        for item, picture in batch:
            if isinstance(picture, PictureError):
                results.append(Embedded(item, None, str(picture)))
                continue
            vector = next(vectors)
            if np.isfinite(vector).all():
                results.append(Embedded(item, vector))
            else:
                why = f"{picture.source} got a vector with numbers that are not finite; load the model in float32."
                results.append(Embedded(item, None, why))
        return results

    def _embed_pictures(self, pictures: Sequence[Picture]) -> Float[np.ndarray, "batch dim"]:
        return self.compute(self._look(pictures)).float().cpu().numpy()

    def _embed_texts(self, inputs: dict[str, Tensor]) -> Float[np.ndarray, "batch dim"]:
        with torch.inference_mode():
            features = self.model.text_features(**{k: v.to(self.model.device) for k, v in inputs.items()})
            return F.normalize(features.float(), dim=-1).cpu().numpy()


def as_source(item: Any) -> str | Path | bytes | Picture:
    """Paths and bytes are read; pictures in memory are taken as they are."""
    return item if isinstance(item, (str, Path, bytes, Picture)) else as_picture(item)
