"""A text that breaks into letters has to beat every null prompt."""

from __future__ import annotations

from sightline.search.null import least


class Breaks:
    def pieces_per_word(self, text: str) -> float:
        return {"a red mug": 1.0, "zxqv blorptang": 5.5}[text]


def test_letters_in_a_row_need_more_than_words_do() -> None:
    assert least("a red mug", Breaks(), None) is None
    assert least("zxqv blorptang", Breaks(), None) == 100.0
    assert least("zxqv blorptang", Breaks(), 90.0) == 90.0  # what the user asks for counts
    assert least("zxqv blorptang", object(), None) is None  # an embedder that cannot say
