"""Each family as a tiny checkpoint of random numbers, written by its oracle, read by us; both see the same; how far off?"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sightline.app.families.oracles import ORACLES, Oracle
from sightline.app.families.table import FAMILIES, IMAGE, WORDS, Family
from sightline.app.verbs.result import Result
from sightline.errors import SightlineError
from sightline.models.zoo import model_class

TOLERANCE = 1e-5  # of the largest logit, in float32
PACKAGE = Path(__file__).resolve().parents[2]  # the folder sightline


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One family. difference: largest between logits, relative to the largest of the oracle's; None: not compared, and
    reason says why. equal: within TOLERANCE; None where the oracle is not there. parameters: of `official`, in full size.
    file: the family's, within the package; lines: of that file.
    """

    family: str
    oracle: str
    difference: float | None
    equal: bool | None
    official: str
    parameters: int
    file: str
    lines: int
    reason: str = ""


@dataclass(kw_only=True)
class Families(Result):
    families: list[Compared]

    @property
    def sound(self) -> bool:
        """No family that was compared is off."""
        return all(one.equal is not False for one in self.families)

    def to_dict(self) -> dict[str, Any]:
        return {"sound": self.sound, **super().to_dict()}


def compare_families(families: Sequence[Family] = FAMILIES) -> Families:
    """Build, write, read and run each.

    A family whose oracle is not installed is listed with the way to install it; a failure is that row's reason.
    """
    return Families(families=[_compared(family) for family in families])


def _compared(family: Family) -> Compared:
    file = PACKAGE / "models" / f"{family.module.replace('.', '/')}.py"
    variants: dict[str, int] = importlib.import_module(f"sightline.models.{family.module}").VARIANTS
    oracle = ORACLES[family.library]
    difference, reason, there = None, "", find_spec(family.library) is not None
    if not there:
        reason = f"{family.library} is not installed; {oracle.install}"
    else:
        try:
            difference = _difference(family, oracle)
            if difference > TOLERANCE:
                reason = f"off by {difference:.1e}, at most {TOLERANCE} is allowed"
        except ImportError as error:  # installed, but of no use here: no fault of ours
            there, reason = False, f"{family.library} does not serve here ({error}); {oracle.install}"
        except Exception as error:  # a row of the table does not end the others
            reason = str(error) if isinstance(error, SightlineError) else f"{type(error).__name__}: {error}"
    return Compared(
        family=family.name,
        oracle=f"{family.library} {version(oracle.package)}" if there else family.library,
        difference=difference,
        equal=(difference is not None and difference <= TOLERANCE) if there else None,
        official=family.official,
        parameters=variants[family.official],
        file=file.relative_to(PACKAGE).as_posix(),
        lines=len(file.read_text(encoding="utf-8").splitlines()),
        reason=reason,
    )


def _difference(family: Family, oracle: Oracle) -> float:
    inputs, places = _shown(family)
    with tempfile.TemporaryDirectory(prefix="sightline-") as written, torch.no_grad():
        theirs = tiny_oracle(family)
        oracle.save(theirs, family, Path(written))
        ours = model_class(Path(written)).from_folder(Path(written))
        want = oracle.run(theirs, {**inputs, **places})[family.compared[0]]
        got = getattr(ours(**inputs, **(places if family.told else {})), family.compared[1])
    mask = inputs["attention_mask"].bool() if "attention_mask" in inputs else None
    if mask is not None and want.shape[:2] == mask.shape:  # what stands at padding is nobody's
        want, got = want[mask], got[mask]
    if want.shape != got.shape:
        raise SightlineError(
            f"{family.name}: logits of shape {tuple(got.shape)}, the oracle's are {tuple(want.shape)}."
        )
    return float((got - want).abs().max() / want.abs().max())


def tiny_oracle(family: Family) -> nn.Module:
    """The oracle's tiny model, all numbers random."""
    return _random(ORACLES[family.library].build(family))


def _random(model: nn.Module) -> nn.Module:
    """Every parameter random, so that none that is missed or misnamed goes unseen; weights of norms stay near one."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            near_one = (value.ndim == 1 and name.endswith("weight")) or name.endswith("logit_scale")
            value.copy_(1 + 0.2 * noise if near_one else (0.1 if value.ndim > 1 else 0.2) * noise)
    return model.eval()


def _shown(family: Family) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Inputs of both; and where the placeholders stand, under the oracle's name. Texts are padded on the right."""
    generator = torch.Generator().manual_seed(1)
    inputs = {
        name: torch.randn(given, generator=generator) if isinstance(given, tuple) else torch.tensor(given)
        for name, given in (family.pictures | family.given).items()
    }
    rows = [
        [*family.before, *[IMAGE] * visual, *family.after, *words]
        for visual, words in zip(family.visual, WORDS, strict=True)
    ]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [family.pad] * (longest - len(row)) for row in rows])
    inputs |= {
        "input_ids": ids,
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows]),
    }
    return inputs, {family.places: (ids == IMAGE).long()} if family.places else {}
