"""Every error a user can meet: one sentence that names the input, what was expected, and the way out."""

from __future__ import annotations


class SightlineError(Exception):
    """Base of all errors that Sightline raises on purpose; `exit_code` is what the command line returns."""

    exit_code = 1


class UsageError(SightlineError):
    """The call itself is wrong: an unknown verb, option or combination."""

    exit_code = 2


class PictureError(SightlineError):
    """A picture that cannot be read, or must not be (over budget)."""


class SourceError(SightlineError):
    """A source (file, folder, glob) that names nothing usable."""


class WeightsError(SightlineError):
    """Tensors that are missing, unexpected, mis-shaped or in a refused format."""


class ConfigError(SightlineError):
    """A config.json that asks for something unknown."""


class TokenizerError(SightlineError):
    """A tokenizer that is missing, unreadable or does not fit its model."""


class ManifestError(SightlineError):
    """Two things made by different models (or preprocessing) that must not be mixed."""


class StoreError(SightlineError):
    """An index or journal that is locked, damaged, foreign or has no space left."""


class DataError(SightlineError):
    """Training or evaluation data that does not say what it should."""


class TrainingError(SightlineError):
    """A training run that cannot start or cannot learn."""


class EvaluationError(SightlineError):
    """A score that cannot be computed or replayed."""


class GeometryError(SightlineError):
    """A camera, pose or depth that is not one."""


class RuntimeChoiceError(SightlineError):
    """A device, dtype or engine that this machine does not offer."""


class WorldError(SightlineError):
    """A synthetic scene that cannot be made as asked."""
