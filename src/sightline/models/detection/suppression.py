"""Non-maximum suppression: of boxes that mean the same thing, the surest one stays.

What a dense detector needs after its network, and a set detector such as DETR does not. Greedy, as in Felzenszwalb et
al. 2010 (§ "non-maximum suppression") and every detector with anchors since.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sightline.models.detection.overlap import iou


def suppress(
    xyxy: Float[Tensor, "n 4"], scores: Float[Tensor, " n"], labels: Int[Tensor, " n"], overlap: float = 0.5
) -> Int[Tensor, " kept"]:
    """Indices of the boxes that stay, best first; equal scores keep their order.

    A box goes if a surer one of the same label that stays covers it with an IoU above `overlap`. Boxes of other labels
    are never compared: a mug on a book is two things.
    """
    order = scores.argsort(descending=True, stable=True)
    boxes, classes = xyxy[order].float(), labels[order]
    rival = (iou(boxes[:, None], boxes) > overlap) & (classes[:, None] == classes)
    rivals = rival.cpu().numpy()
    gone = [False] * len(order)
    kept = []
    for place in range(len(order)):
        if gone[place]:
            continue
        kept.append(place)
        for other in rivals[place].nonzero()[0]:
            gone[other] = True
    return order[torch.tensor(kept, dtype=torch.int64, device=order.device)]
