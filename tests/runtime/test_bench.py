"""Interleaved timing with a clock that a hand can check."""

from __future__ import annotations

from sightline.runtime.bench import interleaved, machine


def test_every_contender_in_every_round_in_turn() -> None:
    now, calls = [0.0], []

    def takes(name: str, *seconds: float) -> object:
        left = list(seconds)

        def run() -> None:
            calls.append(name)
            now[0] += left.pop(0)

        return run

    found = interleaved(
        {"a": takes("a", 9, 1, 2, 3), "b": takes("b", 9, 10, 20, 90)}, rounds=3, warmup=1, clock=lambda: now[0]
    )
    assert "".join(calls) == "ab" + "ab" + "ba" + "ab"
    assert (found["a"].median, found["b"].median) == (2, 20)
    assert (found["b"].low, found["b"].high) == (15, 55)  # halfway between neighbours
    assert found["a"].rounds == 3


def test_a_figure_says_where_and_when() -> None:
    assert "threads" in machine() and "torch" in machine() and ", 20" in machine()
