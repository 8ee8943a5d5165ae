"""Where and how tensors are computed: device, dtype, engines, batches, and what a run will cost."""

from __future__ import annotations

from sightline.runtime.batching import batched, batches
from sightline.runtime.engines import ENGINES, Engine, engine
from sightline.runtime.place import Place, place, precision_of

__all__ = ["ENGINES", "Engine", "Place", "batched", "batches", "engine", "place", "precision_of"]
