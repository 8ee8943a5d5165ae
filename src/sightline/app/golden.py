"""Golden vectors: what a built-in checkpoint gave when it was made, so that an install can be checked against it.

    python -m sightline.app.golden FOLDER        writes FOLDER/golden.json

The picture is a formula, so nothing but numbers is stored. float32 numbers agree across machines to about 1e-5.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

FILE = "golden.json"
TEXTS = ("a red mug on a wooden table", "two blue balls and a can", "zzyzx")
QUESTION = "Describe the picture."
TOLERANCE = 1e-3


def golden_picture(size: int = 128) -> np.ndarray:
    """A picture of waves, uint8 [size, size, 3]; integers only, so it is the same everywhere."""
    y, x = np.mgrid[0:size, 0:size].astype(np.int64)
    return np.stack([(x * x + 3 * y) % 256, (x * y // 8) % 256, (5 * x + y * y // 4) % 256], axis=-1).astype(np.uint8)


def golden_vectors(folder: Path) -> dict[str, Any]:
    """The vectors of the golden picture and texts, in float32 on plain torch; of a model that speaks, the logits that
    answer the golden question about the picture; of one that detects, its boxes; of one that measures, its depth."""
    from sightline.models.contrastive.embedder import Embedder
    from sightline.models.vlm.spliced import Spliced
    from sightline.models.zoo import load

    model: Any = load(folder, device="cpu", dtype="float32")
    if isinstance(model, Spliced):
        return {"answer": np.round(_answer(model), 5).tolist()}
    if hasattr(model, "detect") or hasattr(model, "estimate"):
        return _seen(model)
    embedder = Embedder(model, engine="eager", exact=True)
    [picture] = embedder.pictures([golden_picture()])
    if picture.vector is None:
        return {"picture": [], "texts": []}
    return {
        "picture": np.round(picture.vector.astype(float), 6).tolist(),
        "texts": np.round(embedder.texts(list(TEXTS)).astype(float), 6).tolist(),
    }


def _seen(model: Any) -> dict[str, Any]:
    import torch

    with torch.inference_mode():
        out = model(**model.processor(pictures=[golden_picture()]))
    if hasattr(model, "estimate"):
        return {"depth": np.round(out.predicted_depth[0, ::8, ::8].double().numpy(), 5).tolist()}
    kept = {"logits": out.logits[0], "boxes": out.pred_boxes[0]}
    return {name: np.round(tensor[::3].double().numpy(), 5).tolist() for name, tensor in kept.items()}


def _answer(model: Any) -> np.ndarray:
    import torch

    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}
    inputs = model.processor.chat([[message]], [golden_picture()])
    with torch.inference_mode():
        logits: np.ndarray = model(**inputs, last_only=True).logits[0, -1, ::7].double().numpy()
    return logits


def difference(folder: Path) -> float:
    """The largest absolute difference between the stored vectors and those of today. Raises FileNotFoundError."""
    stored = json.loads((folder / FILE).read_text(encoding="utf-8"))
    today = golden_vectors(folder)
    if set(stored) != set(today):
        return float("inf")
    pairs = [(np.asarray(stored[k]), np.asarray(today[k])) for k in stored]
    if any(a.shape != b.shape for a, b in pairs):
        return float("inf")
    return max(float(np.abs(a - b).max()) for a, b in pairs)


if __name__ == "__main__":
    target = Path(sys.argv[1])
    (target / FILE).write_text(json.dumps(golden_vectors(target)) + "\n", encoding="utf-8")
    print(f"wrote {target / FILE}")
