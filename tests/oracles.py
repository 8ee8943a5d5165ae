"""Reference packages that would import torchvision: open_clip and timm, without it.

torchvision has only a CUDA build for this torch; once it is installed, its operators do not load and transformers stops
importing. open_clip and timm use it for data transforms and a frozen batch norm that the tests never call, so blank
modules stand in for it while they are imported, and are taken away again so that nobody else takes torchvision for
present.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType


class _Names(type):
    """Any attribute of the class is a string that says which, so that enumerations can be keys of tables."""

    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return f"{cls.__name__}.{name}"


class _Blank(ModuleType):
    """A module in which every name is an empty class."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        blank = _Names(name, (), {"__module__": self.__name__})
        setattr(self, name, blank)
        return blank


class _BlankTorchvision:
    """An import finder for torchvision and everything inside it."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name.split(".")[0] != "torchvision":
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)  # type: ignore[arg-type]

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _Blank(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        module.__version__ = "0.0.0"


def without_torchvision(package: str) -> ModuleType:
    """Import `package` (open_clip, timm) with blank torchvision modules, then remove them."""
    if package in sys.modules:
        return sys.modules[package]
    import transformers.utils.import_utils as availability  # decides for itself, before the blanks are there

    availability.is_torchvision_available()
    finder = _BlankTorchvision()
    sys.meta_path.insert(0, finder)  # type: ignore[arg-type]
    try:
        return importlib.import_module(package)
    finally:
        sys.meta_path.remove(finder)  # type: ignore[arg-type]
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]


def open_clip() -> ModuleType:
    """The open_clip package."""
    without_torchvision("timm")
    return without_torchvision("open_clip")


def timm() -> ModuleType:
    """The timm package."""
    return without_torchvision("timm")
