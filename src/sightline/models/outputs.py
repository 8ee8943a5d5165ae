"""What models return: the official field names, as plain dataclasses."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class EncoderOutput:
    """One tower. `hidden_states` starts with the embeddings; all but the first two are None unless asked for."""

    last_hidden_state: Tensor
    pooler_output: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class ClassifierOutput:
    """Logits over the classes of a checkpoint, not probabilities."""

    logits: Tensor
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class DualOutput:
    """Two towers, one space. The embeddings have unit length; logits carry the learned scale (and bias)."""

    logits_per_image: Tensor
    logits_per_text: Tensor
    image_embeds: Tensor
    text_embeds: Tensor
    vision_model_output: EncoderOutput | None = None
    text_model_output: EncoderOutput | None = None
