"""The options that several verbs share, so that they are spelled and explained once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

BUILT_IN = "sightline:tabletop-clip"
SPEAKS = "sightline:tabletop-llava"  # answers questions about pictures, with places where it is asked for them
DETECTS = "sightline:tabletop-detr"
MEASURES = "sightline:tabletop-depth"
GROUNDS = DETECTS  # finds phrases, with the built-in CLIP beside it

Model = Annotated[
    str, typer.Option("--model", "-m", help="A checkpoint: a folder, a Hugging Face id, or sightline:NAME (built in).")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.", show_default=True)]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.", show_default=True)]
Engine = Annotated[str, typer.Option(help="auto, eager, compiled, openvino or openvino-int8.", show_default=True)]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Pictures or texts computed at once.")]
Json = Annotated[bool, typer.Option("--json", help="JSON lines instead of readable text.")]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Write files (reports, figures, arrays) to this folder.")]
Sources = Annotated[
    list[str], typer.Argument(help="Files, folders (with what is below), globs, @LIST, or - for stdin.")
]
Exact = Annotated[bool, typer.Option("--exact", help="Read every pixel as the official processor does (slower).")]
