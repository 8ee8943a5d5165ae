"""What every model with a word table says of itself, and how it takes a text: as ids, or as vectors in their place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from jaxtyping import Float, Int
from torch import Tensor, nn

from sightline.errors import UsageError
from sightline.hub import Config, Model

C = TypeVar("C", bound=Config)


class WordModel(Model[C]):
    """Base of decoders, encoders and both together. A family makes `words`."""

    words: nn.Embedding

    def embed(self, input_ids: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch tokens width"]:
        """Token vectors, as `inputs_embeds` takes them: before positions and norms."""
        vectors: Tensor = self.words(input_ids)
        return vectors

    def taken(
        self, ids: Tensor | None, vectors: Tensor | None, reader: str, before: str = ""
    ) -> Float[Tensor, "batch tokens width"]:
        """The vectors of a text that came as one or the other. Raises UsageError for both and for neither.

        reader, before: for the sentence; who reads, and how the names of its arguments begin ("decoder_").
        """
        if ids is not None and vectors is None:
            return self.embed(ids)
        if vectors is None or ids is not None:
            raise UsageError(f"{reader} reads either {before}input_ids or {before}inputs_embeds; give one of the two.")
        return vectors

    @property
    def hidden_size(self) -> int:
        """Width of the vectors that `embed` gives and `inputs_embeds` takes."""
        return self.words.embedding_dim

    @property
    def vocab_size(self) -> int:
        numbers: Any = self.config
        return int(numbers.vocab_size)

    @property
    def context_length(self) -> int:
        """The longest text, in tokens."""
        numbers: Any = self.config
        return int(numbers.max_position_embeddings)


def scored(
    score: Callable[[Tensor], Tensor], states: Float[Tensor, "batch tokens width"], last_only: bool
) -> Float[Tensor, "batch some vocabulary"]:
    """Logits of all positions or, [batch, 1, vocabulary], of the last one.

    The last ones are scored as rows: of a slice [:, -1:] torch cannot make rows, and in bfloat16 multiplies a copy of the
    whole table for every text of the batch instead (49,152 words: 54 MB and 20 times as long).
    """
    return score(states[:, -1])[:, None] if last_only else score(states)
