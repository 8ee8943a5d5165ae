"""`generate` on a table of transitions: every expected token can be worked out by hand."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from sightline.errors import UsageError
from sightline.models.language.generate import Generation, Loops, generate, stream
from sightline.models.language.generate.choice import discourage, kept, repeats
from sightline.models.language.generate.loops import loop_start

STOP, A, B, C, D = range(5)
TABLE = torch.tensor(  # probability of the next token (column) after a token (row)
    [
        [0.20, 0.20, 0.20, 0.20, 0.20],
        [0.05, 0.05, 0.55, 0.25, 0.10],  # after a: b
        [0.10, 0.10, 0.10, 0.60, 0.10],  # after b: c
        [0.70, 0.05, 0.10, 0.05, 0.10],  # after c: stop
        [0.10, 0.10, 0.10, 0.05, 0.65],  # after d: d, for ever
    ]
)


class Chain:
    """A Step whose next token depends on the last one only; keeps what it was told, to look at."""

    def __init__(self, table: torch.Tensor = TABLE) -> None:
        self.logits = table.log() + 3  # a constant that no softmax sees
        self.rows, self.batches = [], []

    def step(self, tokens):
        self.batches.append(len(tokens))
        return self.logits[tokens[:, -1]]

    def reorder(self, rows):
        self.rows.append(rows.tolist())

    def after(self, *tokens):
        return self.logits[torch.tensor(tokens)]


class Letters:
    """Decodes 1 → "a", 2 → "b", …"""

    def decode(self, ids):
        return "".join(" abcdefghijklmnopqrstuvwxyz"[i] for i in ids)


def run(*last: int, table: torch.Tensor = TABLE, tokenizer=None, prompts=None, **options):
    chain = Chain(table)
    options = Generation(**{"stop": (STOP,), "loops": None, "max_new_tokens": 7, **options})
    return generate(chain, chain.after(*last), options, tokenizer=tokenizer, prompts=prompts)


def test_greedy_by_hand():
    done = run(A, D)
    assert done.tokens == [[B, C, STOP], [D] * 7]
    assert done.finished == ["stop", "length"]
    assert done.logprobs[0] == pytest.approx([math.log(0.55), math.log(0.6), math.log(0.7)], abs=1e-6)
    assert done.scores[0] == pytest.approx(math.log(0.231), abs=1e-6)


def test_finished_rows_leave_the_batch_and_change_nothing():
    chain = Chain()
    options = Generation(stop=(STOP,), loops=None, max_new_tokens=7)
    done = generate(chain, chain.after(A, D, B, C), options)
    assert done.tokens == [[B, C, STOP], [D] * 7, [C, STOP], [STOP]]
    assert chain.rows == [[0, 1], [1]] and chain.batches == [4, 2, 1, 1, 1, 1]


def test_options_are_judged():
    for wrong, name in (
        ({"temperature": -1.0}, "temperature"), ({"top_p": 0.0}, "top_p"), ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"num_beams": 2, "temperature": 1.0}, "num_beams"), ({"min_new_tokens": 9, "max_new_tokens": 3}, "min_new"),
        ({"stop_strings": ("",)}, "stop_strings"), ({"repetition_penalty": 0.0}, "repetition_penalty"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=name):
            Generation(**wrong)
    with pytest.raises(UsageError, match="tokenizer"):
        run(A, stop_strings=("c",))
    with pytest.raises(UsageError, match="2 seeds for 1 row"):
        run(A, temperature=1.0, seed=(1, 2))
    with pytest.raises(UsageError, match="too many"):
        run(A, num_beams=4)


# ---- drawing


def test_draws_follow_the_probabilities():
    count = 4000
    done = run(*[A] * count, temperature=1.0, max_new_tokens=1, seed=tuple(range(count)))
    shares = torch.bincount(torch.tensor([t[0] for t in done.tokens]), minlength=5) / count
    assert torch.allclose(shares, TABLE[A], atol=0.03)


def test_temperature_top_k_and_top_p():
    values, order = kept(TABLE[[A]].log(), 3, 1.0)
    assert order.tolist() == [[B, C, D]]
    values, order = kept(TABLE[[A]].log(), 0, 0.75)  # b 0.55, c 0.8: two are enough
    assert order[0, :2].tolist() == [B, C] and values[0, 2:].isneginf().all()
    values, _ = kept(TABLE[[A]].log(), 0, 1e-6)  # never none
    assert values.isneginf().sum() == 4
    many = tuple(range(300))
    assert {t[0] for t in run(*[A] * 300, temperature=1.0, top_k=2, max_new_tokens=1, seed=many).tokens} == {B, C}
    assert {t[0] for t in run(*[A] * 300, temperature=0.01, max_new_tokens=1, seed=many).tokens} == {B}


def test_a_row_draws_the_same_alone_and_in_any_batch():
    together = run(A, D, B, temperature=1.3, seed=(5, 6, 7), max_new_tokens=13)
    for row, (last, seed) in enumerate(((A, 5), (D, 6), (B, 7))):
        alone = run(last, temperature=1.3, seed=seed, max_new_tokens=13)
        assert alone.tokens[0] == together.tokens[row]
    assert run(A, A, temperature=1.0).tokens[0] == run(A, A, temperature=1.0).tokens[1]  # one seed for all
    assert len({tuple(run(D, temperature=2.0, seed=None).tokens[0]) for _ in range(9)}) > 1


# ---- what is discouraged


def test_repetition_penalty_by_hand():
    scores = torch.tensor([[2.0, -1.0, 0.5, 3.0]])
    got = discourage(scores, [[1, 3, 3]], 0, Generation(repetition_penalty=2.0))
    assert got.tolist() == [[2.0, -2.0, 0.5, 1.5]] and scores[0, 3] == 3  # the given one stays


def test_no_run_twice():
    assert repeats([7, 8, 9, 7, 8], 3) == [9]
    assert repeats([7, 8, 9, 7, 8], 1) == [7, 8, 9]
    assert repeats([7, 8], 3) == [] and repeats([7, 7, 7], 2) == [7]
    assert run(D, no_repeat_ngram_size=2, max_new_tokens=3).tokens == [[D, D, STOP]]
    # the prompt counts: "b c" stands there already
    assert run(A, no_repeat_ngram_size=2, prompts=[[B, C, A]], max_new_tokens=2).tokens[0] != [B, C]


def test_suppressed_tokens_and_a_shortest_length():
    assert run(A, suppress=(B,)).tokens == [[C, STOP]]
    done = run(A, min_new_tokens=4)
    assert done.tokens[0][:3] == [B, C, B] and len(done.tokens[0]) >= 4
    assert done.logprobs[0][2] == pytest.approx(math.log(0.1), abs=1e-6)  # of the model, not of what was left


# ---- stop strings, streaming


def test_stop_strings_cut_the_text_and_end_the_row():
    done = run(D, A, tokenizer=Letters(), stop_strings=("dd", "zzz"))
    assert done.tokens == [[D, D], [B, C, STOP]]
    assert done.finished == ["stop", "stop"] and done.texts == ["", "bc"]


def test_streaming_gives_what_is_certain_and_in_the_end_all():
    chain = Chain()
    options = Generation(stop=(STOP,), loops=None, max_new_tokens=5, stop_strings=("cx", "q"))
    pieces, streaming = [], stream(chain, chain.after(A, D), options, tokenizer=Letters())
    with pytest.raises(StopIteration) as end:
        while True:
            pieces.append(next(streaming))
    done = end.value.value
    assert [(p.row, p.text) for p in pieces[:4]] == [(0, "b"), (1, "d"), (0, ""), (1, "d")]  # "c" may begin "cx"
    for row in (0, 1):
        assert "".join(p.text for p in pieces if p.row == row) == done.texts[row]
        assert list(itertools.chain(*(p.tokens for p in pieces if p.row == row))) == done.tokens[row]


def test_a_callback_sees_every_token():
    seen, chain = [], Chain()
    done = generate(chain, chain.after(A), Generation(stop=(STOP,)), on_tokens=seen.append)
    assert [p.tokens[0] for p in seen] == done.tokens[0] and done.texts is None


# ---- loops


def test_loops_by_hand():
    rules = Loops(repeats=3, period=4, shortest=6, size=3, times=3)
    assert loop_start([1, 1, 1, 1, 1], rules) is None  # shorter than 6
    assert loop_start([9, 1, 1, 1, 1, 1, 1], rules) == 2  # the second 1
    assert loop_start([5, 1, 2, 1, 2, 1, 2], rules) == 3
    assert loop_start([5, 1, 2, 3, 4, 1, 2, 3, 4, 1, 2], rules) is None  # two and a bit
    assert loop_start([1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4], rules) == 4
    assert loop_start([1, 2, 3, 7, 1, 2, 3, 8, 8, 1, 2, 3], rules) == 4  # the same three words three times
    assert loop_start([1, 2, 3, 7, 1, 2, 3, 8, 8, 1, 2, 3, 9], rules) is None


def test_a_loop_ends_the_answer_and_is_flagged():
    done = run(D, A, loops=Loops(), max_new_tokens=100)
    assert done.finished == ["loop", "stop"]
    assert len(done.tokens[0]) == 16 and done.loop_from == [1, None]
    assert run(D, loops=Loops(), max_new_tokens=16).finished == ["loop"]


# ---- beams


def best_by_trying_all(last: int, length: int, penalty: float) -> list[int]:
    """Every answer of up to `length` tokens, compared by its weighed log probability."""
    found = {}
    for tokens in itertools.product(range(5), repeat=length):
        cut = tokens[: tokens.index(STOP) + 1] if STOP in tokens else tokens
        score = sum(TABLE[a, b].log().item() for a, b in itertools.pairwise((last, *cut)))
        found[cut] = score / len(cut) ** penalty
    return list(max(found, key=found.get))


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("last", [A, B, D])
def test_beams_find_the_best_answer(last, penalty):
    done = run(last, num_beams=2, length_penalty=penalty, max_new_tokens=4)
    wide = run(last, num_beams=2, length_penalty=penalty, max_new_tokens=4, loops=Loops())
    assert done.tokens[0] == best_by_trying_all(last, 4, penalty) == wide.tokens[0]
    total = sum(done.logprobs[0])
    assert done.scores[0] == pytest.approx(total / len(done.tokens[0]) ** penalty, abs=1e-5)


def test_beams_in_a_batch_are_those_of_single_rows():
    for early in (False, True):
        together = run(A, D, B, C, num_beams=2, early_stopping=early, max_new_tokens=6)
        for row, last in enumerate((A, D, B, C)):
            alone = run(last, num_beams=2, early_stopping=early, max_new_tokens=6)
            assert alone.tokens[0] == together.tokens[row] and alone.finished[0] == together.finished[row]


def test_beams_with_text():
    done = run(A, D, num_beams=2, tokenizer=Letters(), stop_strings=("dd",), max_new_tokens=4)
    assert done.texts[0] == "bc" and done.finished[0] == "stop" and "dd" not in done.texts[1]
