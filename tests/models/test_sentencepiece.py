"""Our reader of `.model` files gives the ids of the sentencepiece package, for every option a file can hold."""

from __future__ import annotations

import contextlib
import io
import random
import struct

import pytest
import sentencepiece

from models.odd_texts import ODD
from sightline.errors import TokenizerError
from sightline.models.language.charsmap import CharsMap
from sightline.models.language.sentencepiece import SentencePiece

WORDS = "a the photo of cat dog two red blue mug on table and running with small large man woman child".split()  # noqa: SIM905
WORDS += ["ball", "box", "over", "café", "naïve", "日本", "中文", "don't", "it's"]
KINDS = {
    "unigram": {"model_type": "unigram"},
    "case folding": {"model_type": "unigram", "normalization_rule_name": "nfkc_cf"},
    "bytes": {"model_type": "unigram", "byte_fallback": True, "vocab_size": 420},
    "as it is": {
        "model_type": "unigram", "add_dummy_prefix": False, "remove_extra_whitespaces": False,
        "normalization_rule_name": "identity",
    },
    "declared": {"model_type": "unigram", "user_defined_symbols": ["cat", "<mask>"]},
    "bpe": {"model_type": "bpe"},
    "bpe bytes": {"model_type": "bpe", "byte_fallback": True, "vocab_size": 420},
    "bpe declared": {"model_type": "bpe", "user_defined_symbols": ["cat", "<mask>"]},
}  # fmt: skip


def trained(**options) -> bytes:
    choose = random.Random(0)
    corpus = [" ".join(choose.choices(WORDS, k=choose.randint(3, 12))) for _ in range(500)]
    corpus += ["Hello, World! 123", "ﬁne ½ text"] * 3
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus), model_writer=out, hard_vocab_limit=False, minloglevel=9, num_threads=1,
        **{"vocab_size": 150, **options},
    )  # fmt: skip
    return out.getvalue()


@pytest.mark.parametrize("kind", KINDS)
def test_ids(kind):
    raw = trained(**KINDS[kind])
    theirs, ours = sentencepiece.SentencePieceProcessor(model_proto=raw), SentencePiece.from_bytes(raw)
    choose = random.Random(1)
    for text in [*ODD, *(" ".join(choose.choices(WORDS, k=7)) for _ in range(50))]:
        assert ours.encode(text) == theirs.encode(text), text


@pytest.mark.parametrize("rule", ["nmt_nfkc", "nfkc", "nfkc_cf", "nmt_nfkc_cf"])
def test_normaliser_on_every_plane(rule):
    """Characters from everywhere in Unicode, alone and beside a combining mark."""
    raw = trained(model_type="unigram", normalization_rule_name=rule)
    theirs, ours = sentencepiece.SentencePieceProcessor(model_proto=raw), SentencePiece.from_bytes(raw)
    points = [p for p in range(1, 0x20000, 37) if not 0xD800 <= p < 0xE000]
    for start in range(0, len(points), 50):
        text = "".join(f"{chr(p)}\u0301a" for p in points[start : start + 50])
        assert ours.normalise(text) == theirs.normalize(text)


def test_decoding_gives_the_words_back():
    ours = SentencePiece.from_bytes(trained(model_type="unigram"))
    assert ours.decode(ours.encode("two red cat")) == "two red cat"


@pytest.mark.parametrize(
    "junk",
    [
        b"", b"\xff" * 40, b"\x0a\x7f", b"junk in a file", trained(model_type="unigram")[:500],
        b"\x0a\x03\x0a\x01a",  # one piece, but no unknown one
    ],
)  # fmt: skip
def test_junk_is_one_sentence(junk, tmp_path):
    (tmp_path / "spiece.model").write_bytes(junk)
    with pytest.raises(TokenizerError, match=r"spiece\.model is no SentencePiece model"):
        SentencePiece.from_file(tmp_path / "spiece.model")


def test_damaged_character_tables():
    with pytest.raises(TokenizerError, match="damaged"):
        CharsMap(struct.pack("<I", 4000) + b"\0" * 8)
    with pytest.raises(TokenizerError, match="damaged"):
        CharsMap(struct.pack("<III", 8, 0x7FFFFC00, 0))("abc")
    assert CharsMap(b"")("aé") == ["a", "é"]


def test_bytes_flipped_anywhere_never_crash(tmp_path):
    raw = bytearray(trained(model_type="unigram"))
    choose = random.Random(2)
    for _ in range(100):
        broken = bytearray(raw)
        for _ in range(5):
            broken[choose.randrange(len(broken))] = choose.randrange(256)
        (tmp_path / "spiece.model").write_bytes(broken)
        with contextlib.suppress(TokenizerError):  # many changes leave a valid file
            SentencePiece.from_file(tmp_path / "spiece.model").encode("a red café №")
