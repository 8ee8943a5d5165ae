"""The language of the tabletop world, in one place to import from: captions, phrases, questions."""

from __future__ import annotations

from .captions import STYLES, caption, captions
from .phrases import phrase, phrases
from .questions import QUESTION_TYPES, UNSEEN, Question, questions

__all__ = ["QUESTION_TYPES", "STYLES", "UNSEEN", "Question", "caption", "captions", "phrase", "phrases", "questions"]
