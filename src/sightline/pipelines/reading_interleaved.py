"""Reading for models whose words look at pictures beside the text (Flamingo, released as IDEFICS).

A prompt is ids alone, pictures and words as they follow each other; a mask says which word sees which picture, and those
that come behind the prompt see what its last word saw.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sightline.models.language.generate import Generated, Generation, Piece, Prefix, generate
from sightline.models.language.generate.respond import within_context
from sightline.models.language.generate.steps import step_of
from sightline.models.vlm.idefics_processor import END
from sightline.pipelines.reading import Ids, OnPiece, Row, Said, Seen, SplicedReader


class InterleavedReader(SplicedReader):
    """As for models that splice, but for how a prompt is read; never writes a picture, and stops where the next turn of
    the conversation would begin."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        ends = self.processor.end
        self.stop = (*((self.tokenizer.token_id(END),) if ends else ()), *self.stop)
        self.turns = () if ends else self.processor.stops
        self.suppress = (self.processor.image_token_id, self.processor.around_id)

    def respond(self, rows: Sequence[Row], options: Generation, on_piece: OnPiece | None = None) -> list[Said]:
        """Go on from every prompt. Rows about the same pictures read them once, where the words before them agree."""
        suppress = tuple(dict.fromkeys([*options.suppress, *self.suppress]))
        strings = options.stop_strings or self.turns
        return super().respond(rows, replace(options, suppress=suppress, stop_strings=strings), on_piece)

    def _end(self, ids: Ids) -> int:
        """Where the last picture stands: up to there a prompt can be read for many questions. 0 without one, and where
        the text ends behind it, so that not all later words see the same."""
        image = self.processor.image_token_id
        end = len(ids) - ids[::-1].index(image) if image in ids else 0
        return 0 if self.processor.closing_id in ids[end:] else end

    def _read(self, seen: Seen, head: Ids) -> Prefix:
        if seen.head is None or seen.head[0] != head:
            _, cache, first = self._begun([Row(head, seen)])
            seen.head = (head, Prefix(self.language, cache, first, tuple(head)))
        return seen.head[1]

    def _together(self, rows: Sequence[Row], options: Generation, show: Callable[[Piece], Any] | None) -> Generated:
        ids, cache, first = self._begun(rows)
        options = within_context(options, ids.shape[1], self.context_length)
        return generate(
            step_of(self.language, cache), first, options, prompts=[row.ids for row in rows],
            tokenizer=self.tokenizer, on_tokens=show,
        )  # fmt: skip

    def _begun(self, rows: Sequence[Row]) -> tuple[Tensor, Any, Tensor]:
        """Prompts padded on the left; the cache that holds them, and the logits of what comes next."""
        device = self.model.device
        texts = [torch.tensor(row.ids, device=device) for row in rows]
        ids = pad_sequence(texts, batch_first=True, padding_value=self.tokenizer.rules.pad_id, padding_side="left")
        mask = pad_sequence([torch.ones_like(t) for t in texts], batch_first=True, padding_side="left")
        inputs = {"input_ids": ids, "attention_mask": mask}
        seen = [torch.stack(row.seen.features) for row in rows if row.seen.features]
        if seen:
            empty = seen[0][:0]
            own = [torch.stack(row.seen.features) if row.seen.features else empty for row in rows]
            inputs["image_features"] = pad_sequence(own, batch_first=True)
            sees = self.processor.sees(ids, inputs["image_features"].shape[1])
            inputs["image_attention_mask"] = sees & mask.bool()[..., None]
        cache = self.language.new_cache(capacity=ids.shape[1])
        with torch.inference_mode():
            first = self.model(**inputs, cache=cache, last_only=True).logits[:, -1]
        return ids, cache, first
