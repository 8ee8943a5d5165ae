"""What models return: the official field names, as plain dataclasses."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sightline.nn import Cache, CrossCache


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


@dataclass
class DecoderOutput:
    """A causal decoder. logits [B, T or 1, vocabulary]; `hidden_states` starts with the embeddings and ends with
    `last_hidden_state`; `cache` is the one that was handed in, now longer."""

    logits: Tensor
    last_hidden_state: Tensor
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    cache: Cache | None = None


@dataclass
class CrossOutput(DecoderOutput):
    """A decoder that looks at a context: `cross_attentions` [B, heads, T, S], one per layer that does."""

    cross_attentions: tuple[Tensor, ...] | None = None


@dataclass
class Seq2SeqOutput(CrossOutput):
    """An encoder–decoder that was given both sides. The states and attentions without "encoder" are the decoder's.

    image_hidden_states: [B, visual tokens, D], what of the pictures went into the encoder; None without pictures.
    """

    encoder_last_hidden_state: Tensor | None = None
    encoder_hidden_states: tuple[Tensor, ...] | None = None
    encoder_attentions: tuple[Tensor, ...] | None = None
    image_hidden_states: Tensor | None = None


@dataclass
class CrossEncoderOutput(EncoderOutput):
    """An encoder that may look at a context, and may be causal with a cache."""

    cross_attentions: tuple[Tensor, ...] | None = None
    cache: CrossCache | None = None


@dataclass
class DetectionOutput:
    """A set of guesses per picture. logits [B, queries, classes + 1], the last class is "no object"; pred_boxes
    [B, queries, 4] are centre x, centre y, width, height as fractions of the picture without its padding.

    auxiliary_outputs: logits and pred_boxes after each decoder layer but the last, only where asked for.
    """

    logits: Tensor
    pred_boxes: Tensor
    last_hidden_state: Tensor | None = None
    encoder_last_hidden_state: Tensor | None = None
    encoder_hidden_states: tuple[Tensor, ...] | None = None
    encoder_attentions: tuple[Tensor, ...] | None = None
    decoder_hidden_states: tuple[Tensor, ...] | None = None
    decoder_attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None
    auxiliary_outputs: tuple[DetectionOutput, ...] | None = None
    pred_masks: Tensor | None = None  # [B, queries, H/4, W/4] logits, only from a panoptic head


@dataclass
class GridOutput:
    """Guesses of a dense detector: objectness [B, N] logits of "here is a thing", logits [B, N, classes], pred_boxes
    [B, N, 4] as in DetectionOutput. N = rows · columns · anchors, in that order; grid = (rows, columns)."""

    objectness: Tensor
    logits: Tensor
    pred_boxes: Tensor
    grid: tuple[int, int]


@dataclass
class BackboneOutput:
    """What a backbone hands out: one map per chosen stage, [B, channels, rows, columns] (or tokens [B, T, D])."""

    feature_maps: tuple[Tensor, ...]
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class DepthOutput:
    """predicted_depth [B, height, width]: metres along the optical axis, or relative inverse depth; the model says
    which (`unit`, `kind`)."""

    predicted_depth: Tensor
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class Kosmos2Output(DecoderOutput):
    """image_embeds [pictures, slots, width] as they went in; projection_attentions [pictures, heads, slots, tokens +
    slots] only with output_attentions; vision_model_output where pixel_values were given."""

    image_embeds: Tensor | None = None
    projection_attentions: Tensor | None = None
    vision_model_output: EncoderOutput | None = None
