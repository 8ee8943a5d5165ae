"""From a reference to a folder: a path, a built-in `sightline:NAME`, or a Hugging Face id."""

from __future__ import annotations

import os
import re
from pathlib import Path

from sightline.errors import WeightsError

BUILT_IN = Path(__file__).parent.parent / "weights"
WANTED = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]  # data only: no code, no pickles
ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def built_in_names() -> list[str]:
    """The checkpoints that ship with the package."""
    return sorted(p.name for p in BUILT_IN.glob("*") if (p / "config.json").is_file())


def resolve(ref: str | Path, revision: str | None = None) -> Path:
    """The local folder of a checkpoint, downloaded once if `ref` is an id of the Hugging Face hub.

    ref: a folder; `sightline:NAME`; or `owner/name` (prefixes `hf-hub:` and `local-dir:` are understood).
    Honours HF_HOME and HF_HUB_OFFLINE. Raises WeightsError that says what to type instead.
    """
    text = str(ref)
    if text.startswith("sightline:"):
        folder = BUILT_IN / text.removeprefix("sightline:")
        if folder.parent != BUILT_IN or not (folder / "config.json").is_file():
            names = ", ".join(f"sightline:{n}" for n in built_in_names()) or "none"
            raise WeightsError(f"{text} is not a built-in checkpoint; there is: {names}.")
        return folder
    text = text.removeprefix("local-dir:")
    if text and Path(text).expanduser().is_dir():
        return Path(text).expanduser()
    name = text.removeprefix("hf-hub:")
    if not ID.fullmatch(name):
        raise WeightsError(f"{text} is no folder here and no model id; ids look like openai/clip-vit-base-patch32.")
    return _download(name, revision)


def _download(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download  # slow to import, needed only here

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=WANTED))
    except Exception as error:  # the hub client raises a dozen kinds; the user needs one sentence
        offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
        reason = "HF_HUB_OFFLINE is set" if offline else type(error).__name__
        raise WeightsError(
            f"{name} is not in the local cache and could not be downloaded ({reason}); "
            f"run `hf download {name}` where there is internet, or name a local folder."
        ) from None
