"""Florence-2's processor: pictures squeezed to 768×768, tasks put into words behind as many placeholders as a picture
makes visual tokens. Equal to the official Florence2Processor; boxes need no way back but width and height."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from sightline.errors import ConfigError, TokenizerError, UsageError
from sightline.hub import read_json, write_json
from sightline.media.pixels import as_pictures
from sightline.media.preprocess import PictureProcessor
from sightline.models.language.tokenizers import Tokenizer, token_name
from sightline.models.loading import context_length, read_picture_record, read_picture_side
from sightline.models.processor import Processor
from sightline.models.vlm.florence2_tasks import BANNED, prompt_of

FILE = "processor_config.json"
LENGTH = "image_seq_length"
IMAGE = "<image>"
RULES = ("ocr", "phrase_grounding", "pure_text", "description_with_bboxes", "description_with_polygons", "polygons",
         "bboxes", "description_with_bboxes_or_polygons")  # fmt: skip
PLACES = (  # what Microsoft's processor adds to BART's tokenizer, in this order
    "<od>", "</od>", "<ocr>", "</ocr>", *(f"<loc_{i}>" for i in range(1000)), "<cap>", "</cap>", "<ncap>", "</ncap>",
    "<dcap>", "</dcap>", "<grounding>", "</grounding>", "<seg>", "</seg>", "<sep>", "<region_cap>", "</region_cap>",
    "<region_to_desciption>", "</region_to_desciption>", "<proposal>", "</proposal>", "<poly>", "</poly>", "<and>",
)  # fmt: skip


@runtime_checkable
class Sees(Protocol):
    """What the processor needs to know of its model."""

    config: Any

    def tokens_per_picture(self, height: int, width: int) -> int: ...


class Florence2Processor(Processor):
    """`processor(pictures, texts)`, one text for each picture: "<OD>", "<CAPTION_TO_PHRASE_GROUNDING>a red mug", or plain
    words. visual: tokens of a picture. rules: the official post_processor_config. microsoft: the file has no <image>."""

    pictures: PictureProcessor
    tokenizer: Tokenizer

    def __init__(
        self,
        pictures: PictureProcessor,
        tokenizer: Tokenizer,
        visual: int,
        rules: Mapping[str, Any] | None = None,
        *,
        microsoft: bool = False,
    ) -> None:
        super().__init__(pictures, tokenizer)
        self.visual, self.rules, self.microsoft = visual, rules, microsoft
        self.image_token_id = tokenizer.token_id(IMAGE)
        self.start, self.end = (
            token_name(tokenizer.extra, f"{n}_token", d) for n, d in (("bos", "<s>"), ("eos", "</s>"))
        )
        tokenizer.rules = replace(tokenizer.rules, mask=True)  # prompts differ in length

    def __call__(
        self, pictures: Sequence[Any] | None = None, texts: Sequence[str] | None = None, **options: Any
    ) -> dict[str, Tensor]:
        """pixel_values, input_ids, attention_mask. Padding stands on the right: positions are counted from the left.

        Pictures without texts are looked at without a task. UsageError when pictures and texts differ in number.
        """
        if isinstance(texts, str):
            raise UsageError("texts is one string; give a list of them, one for each picture.")
        if pictures is None:
            return super().__call__(None, [prompt_of(t) for t in texts or ()], special=False, **options)
        seen = as_pictures(pictures)
        texts = [""] * len(seen) if texts is None else texts
        if len(texts) != len(seen):
            raise UsageError(f"there are {len(seen)} pictures and {len(texts)} texts; give one text for each picture.")
        return {**self.pictures(seen), **self.read([prompt_of(text) for text in texts], **options)}

    def read(self, prompts: Sequence[str], **options: Any) -> dict[str, Tensor]:
        """Prompts, each about one picture: input_ids and attention_mask. UsageError for one that holds <image>."""
        for text in prompts:
            if IMAGE in text:
                raise UsageError(f"a text holds {IMAGE}, which stands for a picture; take it out of {text[:40]!r}.")
        rows = [f"{IMAGE * self.visual}{self.start}{text}{self.end}" for text in prompts]
        return self.tokenizer(rows, special=False, **options)

    @property
    def banned(self) -> Collection[str]:
        """Words that phrase grounding leaves out."""
        rule = (self.rules or {}).get("phrase_grounding")
        listed = rule.get("banned_grounding_tokens") if isinstance(rule, Mapping) else None
        if isinstance(listed, (list, tuple)):
            return frozenset(str(word) for word in listed)
        return BANNED if self.rules is None else frozenset()

    def save(self, folder: Path) -> None:
        """preprocessor_config.json, the tokenizer's files and processor_config.json."""
        super().save(folder)
        record = {**self.pictures.to_dict(), LENGTH: self.visual}
        write_json(folder / "preprocessor_config.json", record)
        if not self.microsoft:
            rules: dict[str, Any] = {name: {} for name in RULES} | {
                "phrase_grounding": {"banned_grounding_tokens": sorted(BANNED)}
            }
            numbers = {"num_additional_image_tokens": 0, "post_processor_config": self.rules or rules}
            write_json(folder / FILE, {**numbers, "processor_class": "Florence2Processor", "image_processor": record})


def read_florence2_processor(folder: Path, model: Sees) -> Processor | None:
    """The processor of a checkpoint folder, in transformers' or Microsoft's form.

    Raises ConfigError for pictures that are cut or of no fixed size (boxes would lie elsewhere), and for another number
    of visual tokens than the model makes; TokenizerError for a tokenizer that does not belong to the model.
    """
    pictures, limit = read_picture_side(folder), context_length(model)  # type: ignore[arg-type]
    if limit is None or not Tokenizer.present(folder):
        return None if pictures is None else Processor(pictures, None)
    tokenizer = Tokenizer.from_folder(folder, context_length=limit, model_type="bart")
    if pictures is None:
        return Processor(None, tokenizer)
    if not isinstance(pictures, PictureProcessor) or pictures.do_center_crop or "height" not in pictures.size:
        raise ConfigError(
            "preprocessor_config.json cuts pictures or keeps their shape; Florence-2 reads whole pictures squeezed to one "
            'size, like {"height": 768, "width": 768} without do_center_crop.'
        )
    visual = model.tokens_per_picture(pictures.size["height"], pictures.size["width"])
    said = (read_picture_record(folder) or {}).get(LENGTH, visual)
    if said != visual:
        raise ConfigError(
            f"the processor counts {said} tokens for a picture ({LENGTH}), and the model makes {visual}; "
            "use the processor that belongs to the model."
        )
    data = read_json(folder / FILE) if (folder / FILE).is_file() else {}
    rules = data.get("post_processor_config")
    if rules is not None and not isinstance(rules, dict):
        raise ConfigError(f"{FILE} says post_processor_config {rules!r}; expected an object.")
    microsoft = bool(model.config.original)
    if microsoft:
        tokenizer.add_tokens([*PLACES, IMAGE], special=True)
    number = tokenizer.token_id(IMAGE)
    if number != model.config.image_token_id:
        raise TokenizerError(
            f'the tokenizer has "{IMAGE}" as token {number}, and the model takes {model.config.image_token_id} for it; '
            "use the tokenizer that belongs to the model."
        )
    return Florence2Processor(pictures, tokenizer, visual, rules, microsoft=microsoft)
