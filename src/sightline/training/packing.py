"""Short samples share a row: less padding, the same gradients.

samples   ■■■■■ ■■■ ■■ ■■■■ ■           rows   ■■■■■■■■   segments  0 0 0 0 0 1 1 1
                                               ■■■■■■■            0 0 0 0 1 1 2 −1

A token sees its own sample only and counts positions from its start, so packed = alone (a test says so).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from sightline.training.labels import IGNORED, Sample, Things, run_starts

PADDING = -1  # the segment of what fills a row


@dataclass(frozen=True)
class Packed:
    """Rows of samples. pictures: the picture of every placeholder run, row by row, left to right.

    looks: of every run of learned tokens in the same order, what it is about; empty where nothing is known.
    """

    input_ids: Int[Tensor, "rows tokens"]
    labels: Int[Tensor, "rows tokens"]
    segments: Int[Tensor, "rows tokens"]
    pictures: Int[Tensor, " placed"]
    looks: tuple[Things, ...] = ()


def fill_rows(lengths: Sequence[int], row: int) -> list[list[int]]:
    """Which samples share a row of `row` tokens: the longest first, each into the fullest row that still takes it.

    Best fit, which wastes a few per cent; the same lengths always give the same rows. Raises ValueError for a sample
    longer than a row.
    """
    if lengths and max(lengths) > row:
        raise ValueError(f"a sample of {max(lengths)} tokens does not fit into a row of {row}")
    rows: list[list[int]] = []
    left: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda n: (-lengths[n], n)):
        fitting = [place for place, free in enumerate(left) if free >= lengths[number]]
        if fitting:
            place = min(fitting, key=lambda p: (left[p], p))
            rows[place].append(number)
            left[place] -= lengths[number]
        else:
            rows.append([number])
            left.append(row - lengths[number])
    return rows


def pack(samples: Sequence[Sample], row: int | None, pad: int) -> Packed:
    """Samples as rows; row: tokens per row, at least the longest sample's; None: one sample a row."""
    longest = max(len(s) for s in samples)
    if row is None:
        rows = [[n] for n in range(len(samples))]
    else:
        rows = fill_rows([len(s) for s in samples], max(row, longest))
    width = max(sum(len(samples[n]) for n in members) for members in rows)
    ids = np.full((len(rows), width), pad, np.int64)
    labels = np.full((len(rows), width), IGNORED, np.int64)
    segments = np.full((len(rows), width), PADDING, np.int64)
    pictures: list[int] = []
    looks: list[Things] = []
    known = all(sample.looks for sample in samples)
    for place, members in enumerate(rows):
        at = 0
        for segment, number in enumerate(members):
            sample = samples[number]
            here = slice(at, at + len(sample))
            ids[place, here], labels[place, here], segments[place, here] = sample.ids, sample.labels, segment
            labels[place, at] = IGNORED  # nothing comes before a first token that could tell it
            pictures += sample.pictures
            looks += sample.looks[: answers(sample)] if known else ()
            at = here.stop
    return Packed(
        torch.from_numpy(ids), torch.from_numpy(labels), torch.from_numpy(segments),
        torch.tensor(pictures, dtype=torch.int64), tuple(looks),
    )  # fmt: skip


def answers(sample: Sample) -> int:
    """How many runs of learned tokens are left, should its end have been cut off."""
    return int(run_starts(torch.from_numpy(sample.labels)[None]).sum())


def share_of_padding(packed: Packed) -> float:
    """The part of all places that holds nothing, 0…1."""
    return float((packed.segments == PADDING).float().mean())
