"""Two towers, one space: what CLIP, SigLIP and CoCa have in common.

A family brings `image_features` and `text_features`; this base makes unit embeddings and logits of them.
"""

from __future__ import annotations

import hashlib
from typing import Any, ClassVar, Literal, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.errors import UsageError
from sightline.hub import Config, Manifest, Model, digest
from sightline.models.outputs import DualOutput, EncoderOutput

C = TypeVar("C", bound=Config)
TEXT_INPUTS = ("input_ids", "attention_mask")


class DualEncoder(Model[C]):
    """Base of contrastive models; `score_function` says how logits become probabilities."""

    score_function: ClassVar[Literal["softmax", "sigmoid"]] = "softmax"
    logit_scale: nn.Parameter  # the natural logarithm of the scale
    logit_bias: nn.Parameter | None

    def __init__(self, config: C) -> None:
        super().__init__(config)
        self.register_parameter("logit_bias", None)  # only a family that learns one sets it

    def encode_image(self, *args: Any, **pictures: Any) -> tuple[Tensor, EncoderOutput]:
        """Embeddings [B, D] before normalisation, and the tower's own output."""
        raise NotImplementedError

    def encode_text(self, *args: Any, **texts: Any) -> tuple[Tensor, EncoderOutput]:
        """Embeddings [B, D] before normalisation, and the tower's own output."""
        raise NotImplementedError

    def patch_features(self, out: EncoderOutput) -> Float[Tensor, "batch patches dim"]:
        """Patch tokens in the shared space, not normalised, from the picture tower's output."""
        raise UsageError(f"{type(self).__name__} places whole pictures only; its patches are in no shared space.")

    @property
    def embedding_dim(self) -> int:
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """The manifest fields that only the family knows: activation, eps, pooling."""
        raise NotImplementedError

    def image_features(self, **pictures: Any) -> Float[Tensor, "batch dim"]:
        """Picture embeddings, not normalised. Arguments are what the processor returns for pictures."""
        return self.encode_image(**pictures)[0]

    def text_features(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Float[Tensor, "batch dim"]:
        """Text embeddings, not normalised."""
        return self.encode_text(input_ids, attention_mask)[0]

    def logits(
        self, image_embeds: Float[Tensor, "pictures dim"], text_embeds: Float[Tensor, "texts dim"]
    ) -> Float[Tensor, "pictures texts"]:
        """Scaled (and, for SigLIP, shifted) similarities of unit embeddings."""
        logits = image_embeds @ text_embeds.T * self.logit_scale.exp()
        return logits if self.logit_bias is None else logits + self.logit_bias

    def probabilities(self, logits: Float[Tensor, "pictures texts"]) -> Float[Tensor, "pictures texts"]:
        """Softmax over the given texts (they sum to one, whatever they are), or a sigmoid for each on its own."""
        return logits.float().softmax(dim=-1) if self.score_function == "softmax" else logits.float().sigmoid()

    def forward(self, output_hidden_states: bool = False, output_attentions: bool = False, **inputs: Any) -> DualOutput:
        """Takes everything the processor returns for pictures and texts together."""
        wanted = {"output_hidden_states": output_hidden_states, "output_attentions": output_attentions}
        texts = {k: inputs.pop(k) for k in TEXT_INPUTS if k in inputs}
        image, vision_output = self.encode_image(**inputs, **wanted)
        text, text_output = self.encode_text(**texts, **wanted)
        image, text = F.normalize(image, dim=-1), F.normalize(text, dim=-1)
        logits = self.logits(image, text)
        return DualOutput(logits, logits.T, image, text, vision_output, text_output)

    def manifest(self) -> Manifest:
        """Everything that must agree before embeddings may be compared. Hashes the weights (about 1 s per 2 GB)."""
        return Manifest(
            model_type=self.config.model_type,
            weights_sha256=weights_digest(self),
            score_function=self.score_function,
            embedding_dim=self.embedding_dim,
            **self.describe(),
            **self.processor.describe(),
        )


def weights_digest(model: Model[C]) -> str:
    """The hash of the weight files it was loaded from; for a model made in memory, of its parameters."""
    if model.folder is not None:
        return digest(model.weight_files())
    sha = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        sha.update(name.encode())
        sha.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()
