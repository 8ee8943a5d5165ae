"""Tells when an answer goes round in circles: the same block over and over, or the same run of tokens too often."""

from __future__ import annotations

from collections.abc import Sequence

from sightline.models.language.generate.options import Loops


def loop_start(tokens: Sequence[int], rules: Loops) -> int | None:
    """Where the first repetition begins if the answer so far is a loop, else None. Asked after every token.

    Looks at the end of the answer only, so an answer that looped earlier and went on is no loop now.
    """
    for period in range(1, min(rules.period, len(tokens) // 2) + 1):
        needed = max(period * rules.repeats, rules.shortest) - period
        same = 0
        while same + period < len(tokens) and tokens[-1 - same] == tokens[-1 - same - period]:
            same += 1
        if same >= needed:
            return len(tokens) - same
    places = occurrences(tokens, rules.size)
    return places[1] if len(places) >= rules.times else None


def occurrences(tokens: Sequence[int], size: int) -> list[int]:
    """Where the last `size` tokens stand, themselves included, overlaps not counted twice."""
    if len(tokens) < size:
        return []
    run, places = list(tokens[-size:]), [len(tokens) - size]
    at = places[0] - size
    while at >= 0:
        if tokens[at] == run[0] and list(tokens[at : at + size]) == run:
            places.append(at)
            at -= size
        else:
            at -= 1
    return places[::-1]
