"""The words of the tabletop world: what a thing can be, and which combinations are kept back."""

from __future__ import annotations

KINDS: tuple[str, ...] = (
    "ball", "book", "bottle", "bowl", "box", "bucket", "can", "car", "chair", "cone",
    "cube", "goblet", "lamp", "mug", "mushroom", "plate", "pyramid", "ring", "teapot", "vase",
)  # fmt: skip

# sRGB in 0..1. Chosen far apart in hue (or in lightness), so that light and shade do not turn one into another:
# there is no brown (orange in shade) and no grey (white in shade).
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.86, 0.08, 0.09),
    "orange": (1.00, 0.50, 0.04),
    "yellow": (0.98, 0.86, 0.10),
    "green": (0.10, 0.60, 0.16),
    "cyan": (0.08, 0.80, 0.82),
    "blue": (0.10, 0.24, 0.84),
    "purple": (0.50, 0.14, 0.70),
    "pink": (1.00, 0.56, 0.76),
    "white": (0.95, 0.95, 0.94),
    "black": (0.10, 0.10, 0.11),
}

MATERIALS: tuple[str, ...] = ("matte", "metal", "wooden")

SIZES: dict[str, float] = {"small": 0.58, "large": 1.0}  # scale of the shape's own metres

WORDS: tuple[str, ...] = (
    "TEA", "MILK", "SOUP", "RICE", "SALT", "CORN", "SODA", "JAM", "NUTS", "OATS", "PEAS", "FISH",
    "PLUM", "LIME", "MINT", "HAM", "EGGS", "BEEF", "KIWI", "FIG", "GUM", "WAX", "INK", "SOAP",
)  # fmt: skip

PRINTED_KINDS: tuple[str, ...] = ("box", "can")  # the kinds that can carry a word

DEFECTS: tuple[str, ...] = ("scratch", "dent", "chip", "stain")

# Surfaces are named with words that no thing's colour uses.
SURFACE_COLOURS: dict[str, tuple[float, float, float]] = {
    "beige": (0.78, 0.70, 0.56),
    "grey": (0.55, 0.55, 0.56),
    "brown": (0.45, 0.30, 0.20),
    "olive": (0.50, 0.52, 0.34),
    "slate": (0.38, 0.45, 0.54),
    "lilac": (0.66, 0.60, 0.72),
}
PATTERNS: tuple[str, ...] = ("plain", "planked", "checked", "striped", "marbled", "dotted")

SPLITS: tuple[str, ...] = ("train", "val", "test", "heldout")

# (colour, kind) pairs that train, val and test never show; every scene of `heldout` shows one at least.
# Each kind stands here at most once and each colour at most twice, so that both are still well learned.
HELDOUT_PAIRS: tuple[tuple[str, str], ...] = (
    ("red", "mug"), ("orange", "bottle"), ("yellow", "cube"), ("green", "ball"), ("cyan", "cone"),
    ("blue", "bowl"), ("purple", "box"), ("pink", "chair"), ("white", "car"), ("black", "vase"),
    ("red", "plate"), ("green", "lamp"), ("blue", "pyramid"), ("yellow", "teapot"), ("purple", "ring"),
)  # fmt: skip
