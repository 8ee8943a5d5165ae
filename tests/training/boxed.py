"""Pictures with boxes for tests: a COCO file in a folder, a processor, random numbers."""

from __future__ import annotations

import json

import numpy as np
from PIL import Image

from sightline.models.detection.processor import DetrProcessor


def looks(**size):
    return DetrProcessor.from_dict({"image_processor_type": "DetrImageProcessor", "size": size})


def rng(seed=0):
    return np.random.default_rng(seed)


def coco(folder, sizes=((40, 24), (24, 32), (16, 16)), **changes):
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for number, (width, height) in enumerate(sizes):
        pixels = rng(number).integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
    data = {
        "images": [{"id": 10 + n, "file_name": f"{n}.png", "width": w, "height": h} for n, (w, h) in enumerate(sizes)],
        "categories": [{"id": 7, "name": "mug"}, {"id": 3, "name": "bowl"}],
        "annotations": [
            {"image_id": 10, "category_id": 7, "bbox": [4, 6, 10, 12]},
            {"image_id": 10, "category_id": 3, "bbox": [30, 2, 20, 8]},  # reaches 10 pixels beyond the right edge
            {"image_id": 11, "category_id": 3, "bbox": [0, 0, 12, 16], "iscrowd": 1},
            {"image_id": 11, "category_id": 3, "bbox": [5, 5, 0, 4]},  # no area
            {"image_id": 99, "category_id": 3, "bbox": [5, 5, 1, 4]},  # no such picture
        ],
    }
    data.update(changes)
    (folder / "instances.json").write_text(json.dumps(data))
    return folder / "instances.json"
