"""Metrics, zero-shot, retrieval, answers, captions and calibration, and records that can be replayed."""

from sightline.evaluation.calibration import Calibration, fit_isotonic, fit_temperature
from sightline.evaluation.depth_records import depth_record
from sightline.evaluation.metrics import Score
from sightline.evaluation.records import Record, replay
from sightline.evaluation.retrieval import retrieval
from sightline.evaluation.spoken import caption_record, hallucination_record, reliability_record, vqa_record
from sightline.evaluation.vqa_data import VqaData, open_questions, scene_questions
from sightline.evaluation.zero_shot import TEMPLATES, read_templates, zero_shot

__all__ = [
    "TEMPLATES", "Calibration", "Record", "Score", "VqaData", "caption_record", "depth_record", "fit_isotonic",
    "fit_temperature", "hallucination_record", "open_questions", "read_templates", "reliability_record", "replay",
    "retrieval", "scene_questions", "vqa_record", "zero_shot",
]  # fmt: skip
