"""Sightline: pictures and words in one space, down to metres.

    import sightline

    model = sightline.load("sightline:tabletop-clip")          # or a folder, or a Hugging Face id
    labels = sightline.classify("photo.jpg", ["mug", "bowl"])  # verbs, as on the command line
    sightline.index("photos/", to="photos.index")
    found = sightline.search("photos.index", "a red mug")

Nothing is imported before it is used, so that `import sightline` takes no time.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sightline.app.doctor import doctor
    from sightline.app.verbs.ablating import ablate, error_budget
    from sightline.app.verbs.asking import ask, caption, chat
    from sightline.app.verbs.classify import classify
    from sightline.app.verbs.cost import cost
    from sightline.app.verbs.depth import depth
    from sightline.app.verbs.detecting import detect
    from sightline.app.verbs.embed import embed
    from sightline.app.verbs.evaluating import evaluate_retrieval, evaluate_zero_shot, replay
    from sightline.app.verbs.evaluating_depth import evaluate_depth
    from sightline.app.verbs.evaluating_detection import evaluate_detection
    from sightline.app.verbs.evaluating_speech import evaluate_caption, evaluate_vqa
    from sightline.app.verbs.experimenting import experiment_bridges
    from sightline.app.verbs.inspect import inspect_tokens
    from sightline.app.verbs.inspect_bridges import inspect_bridges
    from sightline.app.verbs.inspect_resolution import inspect_resolution
    from sightline.app.verbs.locating import locate
    from sightline.app.verbs.making import make_instructions
    from sightline.app.verbs.perceiving import perceive
    from sightline.app.verbs.searching import duplicates, index, search
    from sightline.app.verbs.training import check_contrastive, train_contrastive
    from sightline.app.verbs.training_depth import check_depth, train_depth
    from sightline.app.verbs.training_detection import check_detection, train_detection
    from sightline.app.verbs.training_llava import check_llava, show_llava, train_llava
    from sightline.app.verbs.where import where
    from sightline.app.verbs.world import world
    from sightline.errors import SightlineError
    from sightline.media import Picture, find_pictures, read_picture
    from sightline.models.contrastive.embedder import Embedder
    from sightline.models.zoo import load
    from sightline.pipelines import Answer, Answerer, Example

_HOME = {  # public name → the module that holds it
    "Answer": "pipelines",
    "Answerer": "pipelines",
    "Embedder": "models.contrastive.embedder",
    "Example": "pipelines",
    "Picture": "media",
    "SightlineError": "errors",
    "ablate": "app.verbs.ablating",
    "ask": "app.verbs.asking",
    "caption": "app.verbs.asking",
    "chat": "app.verbs.asking",
    "check_contrastive": "app.verbs.training",
    "check_detection": "app.verbs.training_detection",
    "check_depth": "app.verbs.training_depth",
    "check_llava": "app.verbs.training_llava",
    "classify": "app.verbs.classify",
    "cost": "app.verbs.cost",
    "detect": "app.verbs.detecting",
    "depth": "app.verbs.depth",
    "doctor": "app.doctor",
    "duplicates": "app.verbs.searching",
    "embed": "app.verbs.embed",
    "error_budget": "app.verbs.ablating",
    "evaluate_caption": "app.verbs.evaluating_speech",
    "evaluate_detection": "app.verbs.evaluating_detection",
    "evaluate_depth": "app.verbs.evaluating_depth",
    "evaluate_retrieval": "app.verbs.evaluating",
    "evaluate_vqa": "app.verbs.evaluating_speech",
    "evaluate_zero_shot": "app.verbs.evaluating",
    "experiment_bridges": "app.verbs.experimenting",
    "find_pictures": "media",
    "index": "app.verbs.searching",
    "inspect_bridges": "app.verbs.inspect_bridges",
    "inspect_resolution": "app.verbs.inspect_resolution",
    "inspect_tokens": "app.verbs.inspect",
    "load": "models.zoo",
    "locate": "app.verbs.locating",
    "make_instructions": "app.verbs.making",
    "perceive": "app.verbs.perceiving",
    "read_picture": "media",
    "replay": "app.verbs.evaluating",
    "show_llava": "app.verbs.training_llava",
    "train_contrastive": "app.verbs.training",
    "train_detection": "app.verbs.training_detection",
    "train_depth": "app.verbs.training_depth",
    "train_llava": "app.verbs.training_llava",
    "where": "app.verbs.where",
    "world": "app.verbs.world",
}

__all__ = [
    "Answer",
    "Answerer",
    "Embedder",
    "Example",
    "Picture",
    "SightlineError",
    "ablate",
    "ask",
    "caption",
    "chat",
    "check_contrastive",
    "check_depth",
    "check_detection",
    "check_llava",
    "classify",
    "cost",
    "depth",
    "detect",
    "doctor",
    "duplicates",
    "embed",
    "error_budget",
    "evaluate_caption",
    "evaluate_depth",
    "evaluate_detection",
    "evaluate_retrieval",
    "evaluate_vqa",
    "evaluate_zero_shot",
    "experiment_bridges",
    "find_pictures",
    "index",
    "inspect_bridges",
    "inspect_resolution",
    "inspect_tokens",
    "load",
    "locate",
    "make_instructions",
    "perceive",
    "read_picture",
    "replay",
    "search",
    "show_llava",
    "train_contrastive",
    "train_depth",
    "train_detection",
    "train_llava",
    "where",
    "world",
]


def __getattr__(name: str) -> Any:
    if name == "search":
        return importlib.import_module("sightline.search")
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("sightline")
    if name not in _HOME:
        raise AttributeError(f"sightline has no {name!r}")
    return getattr(importlib.import_module(f"sightline.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)


class _Search(ModuleType):
    """`search` is a verb and a room: `sightline.search(…)` searches, `sightline.search.index` is a module of the room."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        return importlib.import_module("sightline.app.verbs.searching").search(*args, **options)


class _Sightline(ModuleType):
    """Importing the room `search` sets it as an attribute here, which must not hide the verb of the same name."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "search" and isinstance(value, ModuleType):
            value.__class__ = _Search
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Sightline
