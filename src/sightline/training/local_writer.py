"""A language model of this machine in place of an endpoint: messages in, text out, nothing sent anywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from sightline.errors import SourceError, UsageError
from sightline.hub import resolve
from sightline.models.language.chat import ChatTemplate
from sightline.models.language.decoder import Decoder
from sightline.models.language.generate import Generation, respond
from sightline.models.language.tokenizers import token_name
from sightline.models.zoo import load


class LocalWriter:
    """A decoder's folder (or id) with a tokenizer and a chat template."""

    def __init__(self, ref: str | Path, *, max_tokens: int = 1024, temperature: float = 0.7, seed: int = 0) -> None:
        folder = resolve(ref)
        decoder, template = load(folder), ChatTemplate.from_folder(folder)
        tokenizer = decoder.processor.tokenizer if decoder.processor is not None else None
        if not isinstance(decoder, Decoder) or tokenizer is None or template is None:
            raise UsageError(f"{ref} is no language model with a tokenizer and a chat template.")
        self.name, self.decoder, self.tokenizer, self.template = str(ref), decoder, tokenizer, template
        ends = [token_name(tokenizer.extra, "eos_token", ""), "<|im_end|>", "<end_of_turn>", "<|eot_id|>"]
        stop = {n for e in ends if e and (n := tokenizer.backend.token_to_id(e)) is not None}
        self.options = Generation(max_new_tokens=max_tokens, temperature=temperature, seed=seed, stop=tuple(stop))

    def __call__(self, messages: Sequence[Mapping[str, str]]) -> str:
        """Raises SourceError for an answer that does not end."""
        try:
            text = self.template.render(messages, add_generation_prompt=True)
        except UsageError:  # some templates take no system message; then it stands before the question
            joined = "\n\n".join(m["content"] for m in messages)
            text = self.template.render([{"role": "user", "content": joined}], add_generation_prompt=True)
        start = token_name(self.tokenizer.extra, "bos_token", "")
        inputs = self.tokenizer([text], special=not (start and text.startswith(start)))
        ids = inputs["input_ids"].to(self.decoder.device)
        done = respond(self.decoder, ids, options=self.options, tokenizer=self.tokenizer)
        if done.finished[0] != "stop":
            raise SourceError(f"the answer of {self.name} did not end ({done.finished[0]}).")
        text = self.tokenizer.decode([t for t in done.tokens[0] if t not in self.options.stop])
        return str(text)
