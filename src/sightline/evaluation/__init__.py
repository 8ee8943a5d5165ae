"""Metrics, zero-shot, retrieval, and records that can be replayed."""

from sightline.evaluation.metrics import Score
from sightline.evaluation.records import Record, replay
from sightline.evaluation.retrieval import retrieval
from sightline.evaluation.zero_shot import TEMPLATES, read_templates, zero_shot

__all__ = ["TEMPLATES", "Record", "Score", "read_templates", "replay", "retrieval", "zero_shot"]
