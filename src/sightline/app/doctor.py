"""doctor: is this install sound? Each check says what it found and, when it is not well, the way out."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Literal, overload

from sightline.app.golden import FILE, TOLERANCE, difference
from sightline.app.output import human_bytes
from sightline.app.verbs.result import Result

if TYPE_CHECKING:
    from sightline.app.families.comparing import Families

CORE = (
    "torch",
    "numpy",
    "safetensors",
    "tokenizers",
    "huggingface_hub",
    "pillow",
    "simplejpeg",
    "jaxtyping",
    "typer",
    "lancedb",
)
EXTRAS = {
    "openvino": ("openvino", "faster on CPUs, int8: pip install 'sightline[fast]'"),
    "nncf": ("nncf", "makes int8 models for openvino: pip install 'sightline[fast]'"),
    "tensorboard": ("tensorboard", "training curves: pip install 'sightline[train]'"),
    "pyarrow": ("pyarrow", "parquet to learn from: pip install 'sightline[train]'"),
    "scipy": ("scipy", "training of detectors: pip install 'sightline[detect]'"),
    "sacrebleu": ("sacrebleu", "BLEU of captions: pip install 'sightline[evaluate]'"),
}
LEAST_FREE = 2 * 1024**3  # bytes; below this an index of many pictures is soon in trouble
GOOD, NOTE, BAD = "good", "note", "bad"


@dataclass(frozen=True)
class Check:
    """state: good; note (works, but worth knowing); bad (not sound)."""

    name: str
    state: str
    found: str


@dataclass(kw_only=True)
class Diagnosis(Result):
    checks: list[Check]

    @property
    def sound(self) -> bool:
        return all(check.state != BAD for check in self.checks)

    def to_dict(self) -> dict[str, object]:
        return {"sound": self.sound, "checks": [vars(check) for check in self.checks]}


@overload
def doctor(*, families: Literal[False] = False) -> Diagnosis: ...


@overload
def doctor(*, families: Literal[True]) -> Families: ...


def doctor(*, families: bool = False) -> Diagnosis | Families:
    """Look at the interpreter, the packages, the processor, the built-in weights and the disk.

    families: instead, compare each family that sees and speaks with its oracle, on a tiny checkpoint, now.
    """
    if families:
        from sightline.app.families.comparing import compare_families

        return compare_families()
    checks: list[Check] = []
    for look in (_python, _packages, _torch, _torchvision, _extras, _weights, _places):
        try:
            checks += look()
        except Exception as error:  # a doctor does not die of the patient's illness
            checks.append(
                Check(look.__name__.strip("_"), BAD, f"this check itself failed: {type(error).__name__}: {error}")
            )
    return Diagnosis(checks=checks)


def _python() -> Iterator[Check]:
    enough = sys.version_info >= (3, 11)
    yield Check("python", GOOD if enough else BAD, f"{platform.python_version()} on {platform.platform(terse=True)}")
    yield Check("sightline", GOOD, f"{_version('sightline') or 'run from source'}, {Path(__file__).parent.parent}")


def _packages() -> Iterator[Check]:
    for name in CORE:
        found = _version(name)
        yield Check(name, GOOD if found else BAD, found or f"is missing; run: pip install {name}")


def _torch() -> Iterator[Check]:
    import torch

    from sightline.runtime import place

    where = place()
    yield Check("threads", GOOD, f"{torch.get_num_threads()} for torch on {os.cpu_count()} cores")
    native = "computed natively" if where.dtype == torch.bfloat16 else "not native here, so auto means float32"
    yield Check(
        "device", GOOD, f"auto is {where.device} in {str(where.dtype).removeprefix('torch.')}; bfloat16 is {native}"
    )
    x = torch.linspace(-1, 1, 64).reshape(8, 8)
    exact = (x.double() @ x.double().T).float()
    off = float((x @ x.T - exact).abs().max())
    yield Check("arithmetic", GOOD if off < 1e-5 else BAD, f"a matrix product in float32 is off by {off:.1e}")


def _torchvision() -> Iterator[Check]:
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except Exception as error:
        yield Check(
            "torchvision", NOTE,
            f"is installed but does not load with this torch ({type(error).__name__}); Sightline does not use it, other "
            "packages will fail: pip uninstall torchvision",
        )  # fmt: skip
    else:
        yield Check("torchvision", NOTE, f"{_version('torchvision')} is installed; Sightline does not use it")


def _extras() -> Iterator[Check]:
    for name, (package, why) in EXTRAS.items():
        found = _version(package)
        yield Check(name, GOOD if found else NOTE, found or f"not installed ({why})")


def _weights() -> Iterator[Check]:
    from sightline.hub import built_in_names, resolve

    names = built_in_names()
    if not names:
        yield Check("weights", BAD, "no built-in checkpoint is in the package; install Sightline again")
    for name in names:
        folder = resolve(f"sightline:{name}")
        if not (folder / FILE).is_file():
            yield Check(f"sightline:{name}", NOTE, f"has no {FILE} to check against")
            continue
        off = difference(folder)
        well = off <= TOLERANCE
        words = f"loads, and its golden vectors come out the same (off by {off:.1e})"
        yield Check(f"sightline:{name}", GOOD if well else BAD,
                    words if well else f"gives other vectors than when it was made (off by {off:.1e}, at most {TOLERANCE} is "
                    "allowed); install Sightline again, or report this with the lines above")  # fmt: skip


def _places() -> Iterator[Check]:
    yield _disk("disk here", Path.cwd())
    cache = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    yield _disk("model cache", cache)
    if os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0"):
        yield Check("hub", NOTE, "HF_HUB_OFFLINE is set: ids of the hub are looked up in the cache only")


def _disk(name: str, folder: Path) -> Check:
    there = next(p for p in (folder, *folder.parents) if p.exists())
    free = shutil.disk_usage(there).free
    words = f"{human_bytes(free)} free in {folder}"
    return (
        Check(name, GOOD, words) if free >= LEAST_FREE else Check(name, NOTE, f"only {words}; long jobs may stop early")
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
