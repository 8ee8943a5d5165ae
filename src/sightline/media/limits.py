"""Budgets for what comes from outside. They are checked on the header, before a single pixel is decoded."""

from __future__ import annotations

from dataclasses import dataclass

from sightline.errors import PictureError, UsageError

MIB = 1024 * 1024
EXPANSION_EXEMPT_PIXELS = 25_000_000  # a blank 5000×5000 scan may be as small as it likes


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one file may cost.

    bytes: size of the file.
    pixels: width × height of a frame, as the header states it.
    frames: frames or pages in the file (only the first is decoded, but counting them has to end).
    expansion: pixels per byte of file, asked only of pictures above 25 million pixels.
        The densest honest files (fax-coded scans, flat 8-bit PNG) stay below 1,000; a bomb of
        9,000×9,000 pixels in 10 KB has 8,100.
    """

    bytes: int = 256 * MIB
    pixels: int = 100_000_000
    frames: int = 1_000
    expansion: int = 1_000

    def __post_init__(self) -> None:
        for name in ("bytes", "pixels", "frames", "expansion"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UsageError(f"The limit on {name} is {value!r}, but it must be a whole number above 0.")

    @classmethod
    def server(cls) -> Limits:
        """For bytes that strangers send: 20 MiB, 50 million pixels, 64 frames."""
        return cls(bytes=20 * MIB, pixels=50_000_000, frames=64, expansion=500)

    def check_bytes(self, name: str, count: int) -> None:
        """Raises PictureError for a file over the byte budget."""
        if count > self.bytes:
            raise PictureError(
                f"{name} has {count:,} bytes, over the limit of {self.bytes:,}; "
                f"make it smaller, or allow it with Limits(bytes={count})."
            )

    def check_size(self, name: str, width: int, height: int, file_bytes: int) -> None:
        """Raises PictureError when the header promises more pixels than allowed, or absurdly many per byte."""
        pixels = width * height
        if width < 1 or height < 1:
            raise PictureError(f"{name} says it is {width}×{height} pixels, so there is nothing to see in it.")
        if pixels > self.pixels:
            raise PictureError(
                f"{name} says it is {width:,}×{height:,} pixels ({pixels / 1e6:.0f} million), over the limit of "
                f"{self.pixels / 1e6:.0f} million; make it smaller, or allow it with Limits(pixels={pixels})."
            )
        ratio = pixels // max(1, file_bytes)
        if pixels > EXPANSION_EXEMPT_PIXELS and ratio > self.expansion:
            raise PictureError(
                f"{name} says it is {width:,}×{height:,} pixels but has only {file_bytes:,} bytes, which looks like a "
                f"decompression bomb; if it is honest, allow it with Limits(expansion={ratio + 1})."
            )

    def check_frames(self, name: str, frames: int) -> None:
        """Raises PictureError for an animation or document with too many frames."""
        if frames > self.frames:
            raise PictureError(
                f"{name} has more than {self.frames:,} frames; take the frame you want out of it, "
                f"or allow it with a higher Limits(frames=…)."
            )
