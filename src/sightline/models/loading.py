"""Builds the processor of a checkpoint folder from whatever files the folder holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sightline.hub import Model, read_json
from sightline.media import PictureProcessor, processor_from_dict
from sightline.models.language.tokenizers import Tokenizer
from sightline.models.processor import PictureSide, Processor


def read_processor(folder: Path, model: Model[Any]) -> Processor | None:
    """Picture side and tokenizer, each if its files are there; None when neither is. A family with a processor of its
    own has a method `read_processor`."""
    own: Callable[[Path], Processor | None] | None = getattr(model, "read_processor", None)
    if own is not None:
        return own(folder)
    pictures, tokenizer = read_picture_side(folder), None
    limit = context_length(model)
    if limit is not None and Tokenizer.present(folder):
        tokenizer = Tokenizer.from_folder(folder, context_length=limit, model_type=model.config.model_type)
    return None if pictures is None and tokenizer is None else Processor(pictures, tokenizer)


def read_picture_side(folder: Path) -> PictureSide | None:
    """From preprocessor_config.json, processor_config.json (transformers 5) or open_clip_config.json."""
    record = read_picture_record(folder)
    if record is not None:
        return processor_from_dict(record)
    if (folder / "open_clip_config.json").is_file():
        return PictureProcessor.from_open_clip(read_json(folder / "open_clip_config.json").get("preprocess_cfg") or {})
    return None


def read_picture_record(folder: Path) -> dict[str, Any] | None:
    """What preprocessor_config.json holds, or the part about pictures in processor_config.json; None without either."""
    if (folder / "preprocessor_config.json").is_file():
        return read_json(folder / "preprocessor_config.json")
    if not (folder / "processor_config.json").is_file():
        return None
    record = read_json(folder / "processor_config.json").get("image_processor")
    return record if isinstance(record, dict) else {}


def context_length(model: Model[Any]) -> int | None:
    """The longest text the model reads; None if it reads none."""
    config = getattr(model.config, "text_config", None) or getattr(model.config, "text_cfg", model.config)
    length = getattr(config, "max_position_embeddings", None) or getattr(config, "context_length", None)
    return int(length) if length else None
