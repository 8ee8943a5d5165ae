"""BLIP-2's first stage: one Q-Former, three masks, three questions about a picture and a text (arXiv:2301.12597, §3.1).

ITC  queries | words apart          → cosine of the text with the nearest of the 32 queries
ITM  queries and words see all      → mean over the queries of "they do not match", "they match"
ITG  words see queries and the past → the next word (the released checkpoint has no head for it)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.errors import ConfigError, UsageError
from sightline.hub import KeyTable, Model, Shaped
from sightline.models.bridges.qformer import BLIP2_QFORMER_KEYS
from sightline.models.language.tokenizers import Tokenizer
from sightline.models.loading import read_picture_side
from sightline.models.processor import Processor
from sightline.models.vision.eva_vit import EvaViT
from sightline.models.vlm.blip2 import Blip2Config


@dataclass
class MatchingOutput:
    """logits_per_image: of ITC [pictures, texts], cosines; of ITM [pairs, 2], "no match" and "match". Embeddings have
    unit length; image_embeds [pictures, queries, D]. last_hidden_state: of the queries, with ITM."""

    logits_per_image: Tensor
    image_embeds: Tensor | None = None
    text_embeds: Tensor | None = None
    last_hidden_state: Tensor | None = None

    @property
    def logits_per_text(self) -> Tensor:
        return self.logits_per_image.T


class Blip2Matching(Model[Blip2Config]):
    """`compare` (ITC: every picture with every text, fast) and `match` (ITM: pairs, looked at together)."""

    Config = Blip2Config
    ARCHITECTURE = "Blip2ForImageTextRetrieval"
    NEEDED: ClassVar[str] = "use_qformer_text_input"

    def __init__(self, config: Blip2Config) -> None:
        super().__init__(config)
        c, q = config, config.qformer_config
        if not q.use_qformer_text_input:
            raise ConfigError(f'config.json says "{self.NEEDED}": false; matching reads texts, so it should be true.')
        self.vision = EvaViT(c.vision_config)
        self.queries = nn.Parameter(torch.zeros(c.num_query_tokens, q.hidden_size))
        self.qformer = q.build(c.vision_config.hidden_size, words=True)
        self.project_image = nn.Linear(q.hidden_size, c.image_text_hidden_size)
        self.project_text = nn.Linear(q.hidden_size, c.image_text_hidden_size)
        self.head = nn.Linear(q.hidden_size, 2)

    @property
    def context_length(self) -> int:
        """The longest text, in tokens."""
        return self.config.qformer_config.max_position_embeddings

    def vision_tokens(
        self, pixel_values: Float[Tensor, "pictures channels height width"]
    ) -> Float[Tensor, "pictures tokens wide"]:
        tokens: Tensor = self.vision(pixel_values.to(self.vision.dtype)).last_hidden_state
        return tokens

    def image_features(
        self, pixel_values: Float[Tensor, "pictures channels height width"]
    ) -> Float[Tensor, "pictures queries dim"]:
        """What each query made of each picture, unit length."""
        read, _ = self.qformer(self._asking(len(pixel_values)), self.vision_tokens(pixel_values))
        unit: Tensor = F.normalize(self.project_image(read), dim=-1)
        return unit

    def text_features(
        self, input_ids: Int[Tensor, "texts tokens"], attention_mask: Int[Tensor, "texts tokens"] | None = None
    ) -> Float[Tensor, "texts dim"]:
        """Each text, read without a picture, unit length; its first token speaks for it."""
        words = self.words(*self._plain(input_ids, attention_mask))
        unit: Tensor = F.normalize(self.project_text(words[:, 0]), dim=-1)
        return unit

    def words(
        self, input_ids: Int[Tensor, "texts tokens"], attention_mask: Int[Tensor, "texts tokens"] | None = None
    ) -> Float[Tensor, "texts tokens hidden"]:
        """States of the words of each text, read without a picture."""
        _, words = self.qformer(words=self.qformer.embed(input_ids), words_mask=attention_mask)
        assert isinstance(words, Tensor)
        return words

    def compare(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor | None = None) -> MatchingOutput:
        """ITC: cosine of every text with the nearest query of every picture. No temperature: the files hold none."""
        images, texts = self.image_features(pixel_values), self.text_features(input_ids, attention_mask)
        cosines = torch.einsum("pqd,td->pqt", images, texts)
        return MatchingOutput(cosines.amax(dim=1), images, texts)

    def match(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor | None = None) -> MatchingOutput:
        """ITM: logits [pairs, 2] of "no match" and "match"; as many texts as pictures, one behind the other.

        Raises UsageError where they differ in number.
        """
        if len(pixel_values) != len(input_ids):
            raise UsageError(
                f"there are {len(pixel_values)} pictures and {len(input_ids)} texts; matching takes pairs, so repeat "
                "what stands in several."
            )
        input_ids, attention_mask = self._plain(input_ids, attention_mask)
        read, _ = self.together(self.vision_tokens(pixel_values), input_ids, attention_mask)
        return MatchingOutput(self.head(read).mean(dim=1), last_hidden_state=read)

    def together(
        self,
        tokens: Float[Tensor, "pairs tokens wide"],
        input_ids: Int[Tensor, "pairs words"],
        attention_mask: Int[Tensor, "pairs words"] | None = None,
        *,
        causal: bool = False,
    ) -> tuple[Float[Tensor, "pairs queries hidden"], Float[Tensor, "pairs words hidden"]]:
        """States of queries and words that read each other; causal: as in ITG."""
        read, words = self.qformer(
            self._asking(len(tokens)), tokens, words=self.qformer.embed(input_ids), words_mask=attention_mask,
            causal=causal,
        )  # fmt: skip
        assert read is not None and words is not None
        return read, words

    def forward(
        self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor | None = None, *, matching: bool = False
    ) -> MatchingOutput:
        """`match` or `compare`."""
        return (self.match if matching else self.compare)(pixel_values, input_ids, attention_mask)

    def look(self, input_ids: Tensor, tokens: Tensor) -> Any:
        """A text that looks at a picture's tokens."""
        return self.together(tokens, input_ids)

    def _plain(self, ids: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Texts without the placeholders that newer official processors put before them; a Q-Former has no word for them.

        Raises UsageError for a placeholder anywhere else.
        """
        index, lead = self.config.image_token_index, self.config.num_query_tokens
        if index is None or not bool((ids == index).any()):
            return ids, mask
        head, ids = ids[:, :lead], ids[:, lead:]
        if not bool((head == index).all()) or bool((ids == index).any()):
            raise UsageError(
                f"the placeholder of a picture (token {index}) stands among the words of a text; matching takes the text "
                f"alone, or behind exactly {lead} placeholders."
            )
        return ids, None if mask is None else mask[:, lead:]

    def _asking(self, count: int) -> Tensor:
        return self.queries.expand(count, -1, -1)

    def read_processor(self, folder: Path) -> Processor | None:
        """Pictures, and texts in BERT's words; no placeholders, which mean nothing to a Q-Former."""
        pictures = read_picture_side(folder)
        if not Tokenizer.present(folder):
            return Processor(pictures, None) if pictures else None
        return Processor(pictures, Tokenizer.from_folder(folder, context_length=self.context_length, model_type="bert"))

    KEYS = (
        EvaViT.KEYS.under("vision_model.", "vision.")
        | KeyTable(
            {
                "query_tokens": Shaped("queries", 1),
                "embeddings.word_embeddings.weight": "qformer.words.weight",
                "embeddings.position_embeddings.weight": "qformer.positions.weight",
                "vision_projection.*": "project_image.*",
                "text_projection.*": "project_text.*",
                "itm_head.*": "head.*",
            }
        )
        | BLIP2_QFORMER_KEYS.under("qformer.", "qformer.")
    )

    @classmethod
    def adapt(cls, tensors: dict[str, Any]) -> dict[str, Any]:
        """A buffer of old files is left out."""
        return {name: tensor for name, tensor in tensors.items() if name != "embeddings.position_ids"}


VARIANTS = {"Salesforce/blip2-itm-vit-g": 1_172_032_258}  # id → parameters, counted on the meta device
