"""Sixteen codes → a mask of 64×64: the decoder of PaliGemma's VQ-VAE (Ning et al. 2023, arXiv:2301.02229).

codes [N, 16] → vectors on a 4×4 grid → 1×1 convolution → two residual blocks → four times doubled → [N, 64, 64]

The official weights are Google's `vae-oid.npz`. Only safetensors are opened here, so rewrite it once under the same names:
`save_file({k: v for k, v in numpy.load("vae-oid.npz").items()}, folder / "vae-oid.safetensors")` (safetensors.numpy).
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32, Int, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.errors import WeightsError
from sightline.hub import KeyTable, read_weights, write_weights

FILE = "vae-oid.safetensors"
BOOK = "_vq_vae._embedding"
SIDE = 4  # of the grid of codes


class Residual(nn.Module):
    """x + convolutions of 3×3, 3×3 and 1×1, a ReLU before each but the first."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, size, padding=size // 2) for size in (3, 3, 1))

    def forward(self, x: Float[Tensor, "n channels rows columns"]) -> Float[Tensor, "n channels rows columns"]:
        first, second, third = self.convs
        moved: Tensor = third(F.relu(second(F.relu(first(x)))))
        return x + moved


class MaskDecoder(nn.Module):
    """The half of the VQ-VAE that draws. codes: entries of the code book; width: of a code; channels: inside."""

    def __init__(self, codes: int = 128, width: int = 512, channels: int = 128) -> None:
        super().__init__()
        self.book = nn.Parameter(torch.zeros(codes, width))
        self.enter = nn.Conv2d(width, channels, 1)
        self.blocks = nn.ModuleList(Residual(channels) for _ in range(2))
        widths = [channels, *(channels >> i for i in range(4))]
        self.doubled = nn.ModuleList(nn.ConvTranspose2d(a, b, 4, stride=2, padding=1) for a, b in pairwise(widths))
        self.leave = nn.Conv2d(widths[-1], 1, 1)

    def forward(self, codes: Int[Tensor, "n 16"]) -> Float[Tensor, "n 64 64"]:
        """About −1 … 1; above 0 is inside the mask."""
        x: Tensor = self.enter(self.book[codes].reshape(len(codes), SIDE, SIDE, -1).permute(0, 3, 1, 2))
        x = F.relu(x)
        for block in self.blocks:
            x = block(x)
        for doubled in self.doubled:
            x = F.relu(doubled(x))
        drawn: Tensor = self.leave(x)
        return drawn[:, 0]

    def draw(self, codes: Int64[np.ndarray, "n 16"]) -> Float32[np.ndarray, "n 64 64"]:
        """`forward` for codes as `paligemma_places.parse` gives them; NaN where there are none."""
        grids = np.full((len(codes), 64, 64), np.nan, np.float32)
        there = (codes >= 0).all(axis=1)
        with torch.inference_mode():
            for some in np.array_split(np.flatnonzero(there), -(-int(there.sum()) // 64) or 1):  # 64 at a time
                if len(some):
                    drawn = self(torch.from_numpy(codes[some]).to(self.book.device))
                    grids[some] = drawn.float().cpu().numpy()
        return grids

    @classmethod
    def from_folder(cls, folder: str | Path) -> MaskDecoder:
        """From the `vae-oid.safetensors` of a folder; strict, but for the VQ-VAE's encoder, which is left out.

        Raises WeightsError when the file is missing, damaged, or holds something else.
        """
        if not (Path(folder) / FILE).is_file():
            raise WeightsError(f"{folder} holds no {FILE}; write it once from Google's vae-oid.npz, as the docs show.")
        tensors = {
            name: tensor
            for name, tensor in read_weights(Path(folder), (FILE,)).items()
            if name == BOOK or not name.startswith(("encoder.", "_vq_vae."))
        }
        book, enter = tensors.get(BOOK), tensors.get("decoder.0.weight")
        if book is None or enter is None or book.ndim != 2 or enter.ndim != 4:
            raise WeightsError(f"{folder}/{FILE} lacks {BOOK} or decoder.0.weight; it should be Google's vae-oid.npz.")
        with torch.device("meta"):
            decoder = cls(book.shape[0], book.shape[1], enter.shape[0])
        wanted = {name: tensor.shape for name, tensor in decoder.state_dict().items()}
        ours = KEYS.to_ours(wanted, {k: v.float() for k, v in tensors.items()}, cls.__name__)
        decoder.load_state_dict(ours, assign=True)
        return decoder.eval().requires_grad_(False)

    def save(self, folder: str | Path) -> None:
        """Write `vae-oid.safetensors` under the official names."""
        write_weights(Path(folder), KEYS.to_theirs(self.state_dict()), FILE)


KEYS = KeyTable(
    {
        BOOK: "book",
        "decoder.0.*": "enter.*",
        **{f"decoder.{2 + b}.net.{2 * c}.*": f"blocks.{b}.convs.{c}.*" for b in range(2) for c in range(3)},
        **{f"decoder.{4 + 2 * i}.*": f"doubled.{i}.*" for i in range(4)},
        "decoder.12.*": "leave.*",
    }
)
