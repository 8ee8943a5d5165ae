"""Continue a text: greedy, sampling, beams; stop rules, streaming, loops. `respond` prefills; `generate` goes on."""

from sightline.models.language.generate.options import Generated, Generation, Loops, Piece
from sightline.models.language.generate.prefix import Prefix
from sightline.models.language.generate.respond import respond, respond_encoded, respond_stream
from sightline.models.language.generate.steps import DecoderStep, EncoderDecoderStep, Step
from sightline.models.language.generate.stream import generate, stream
from sightline.models.language.generate.text import TextStream

__all__ = [
    "DecoderStep",
    "EncoderDecoderStep",
    "Generated",
    "Generation",
    "Loops",
    "Piece",
    "Prefix",
    "Step",
    "TextStream",
    "generate",
    "respond",
    "respond_encoded",
    "respond_stream",
    "stream",
]
