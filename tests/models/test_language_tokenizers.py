"""Language models' tokenizers give the ids and texts of transformers, from every kind of file a folder may hold."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import tokenizers
import torch
import transformers
from tokenizers import models, normalizers, pre_tokenizers, trainers

from models.odd_texts import ODD
from models.test_sentencepiece import WORDS, trained
from sightline.errors import TokenizerError
from sightline.models.language.generate import TextStream
from sightline.models.language.tokenizers import Tokenizer

MORE = [
    "USER: <image>\nWhat is left of the red mug? ASSISTANT:", "a</s>b", "<s>", " two  spaces", "\n", "tab\there",
    "<|im_start|>user\nhi<|im_end|>\n", "x<loc_003>y", "  <image> <image>", "[CLS] a cat [SEP] ##ing",
]  # fmt: skip
TEXTS = [*ODD, *MORE]


def corpus() -> list[str]:
    choose = random.Random(0)
    return [" ".join(choose.choices(WORDS, k=choose.randint(3, 12))) for _ in range(300)] + ["It's 12 o'clock!\n"] * 9


@pytest.fixture(scope="module")
def byte_files() -> tuple[dict[str, int], list[str]]:
    """A byte-level vocabulary with the special tokens of all families, and its merges."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "<|endoftext|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=specials,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    backend.train_from_iterator(corpus(), trainer)
    model = json.loads(backend.to_str())["model"]
    return model["vocab"], [" ".join(m) for m in model["merges"]]


BYTE_LEVEL = {
    "opt": ("GPT2Tokenizer", {
        "add_bos_token": True, "bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>",
    }),
    "phi": ("CodeGenTokenizer", {"unk_token": "<|endoftext|>"}),
    "qwen2": ("Qwen2Tokenizer", {
        "pad_token": "<|endoftext|>", "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
    }),
    "bart": ("BartTokenizer", {}),
}  # fmt: skip
MODEL = {
    "llama": {"model_type": "bpe", "byte_fallback": True, "vocab_size": 420, "normalization_rule_name": "identity",
              "remove_extra_whitespaces": False},
    "gemma": {"model_type": "bpe", "byte_fallback": True, "vocab_size": 430, "normalization_rule_name": "identity",
              "remove_extra_whitespaces": False, "add_dummy_prefix": False, "pad_id": 0, "eos_id": 1, "bos_id": 2,
              "unk_id": 3, "bos_piece": "<bos>", "eos_piece": "<eos>", "user_defined_symbols": ["<mask>", "\t"]},
    "t5": {"model_type": "unigram", "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1},
}  # fmt: skip


def written(folder: Path, kind: str, config: dict, **files: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind, **config}))
    for name, content in files.items():
        path = folder / name.replace("__", ".")
        path.write_bytes(content if isinstance(content, bytes) else str(content).encode())
    return folder


def agree(theirs, folder: Path, model_type: str) -> Tokenizer:
    """Ids with and without special tokens, mask, padding on both sides, and decoded text, for every odd text."""
    ours = Tokenizer.from_folder(folder, context_length=64, model_type=model_type)
    texts = [t.encode("utf-8", "replace").decode("utf-8") for t in TEXTS]
    for special in (True, False):
        want = [theirs(t, add_special_tokens=special)["input_ids"] for t in texts]
        for text, a, b in zip(texts, ours.encode(texts, special=special), want, strict=True):
            assert a == b, text
    for text, ids in zip(texts, want, strict=True):
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True), text
        assert ours.decode(ids, skip_special=False) == theirs.decode(ids), text
    if theirs.pad_token is not None:
        for side in ("left", "right"):
            theirs.padding_side = side
            want = theirs(texts[:6], padding=True, return_tensors="pt")
            got = ours(texts[:6], side=side)
            assert torch.equal(got["input_ids"], want["input_ids"])
            assert torch.equal(got["attention_mask"], want["attention_mask"])
    return ours


def both_ways(theirs, folder: Path, model_type: str, tmp_path: Path) -> None:
    """The raw files; what transformers saves; what we save, read by both."""
    ours = agree(theirs, folder, model_type)
    theirs.save_pretrained(tmp_path / "theirs")
    agree(type(theirs).from_pretrained(tmp_path / "theirs"), tmp_path / "theirs", model_type)
    (tmp_path / "ours").mkdir()
    ours.save(tmp_path / "ours")
    agree(type(theirs).from_pretrained(tmp_path / "ours"), tmp_path / "ours", model_type)


@pytest.mark.parametrize("family", BYTE_LEVEL)
def test_byte_level(family, byte_files, tmp_path):
    kind, config = BYTE_LEVEL[family]
    vocab, merges = byte_files
    text = "\n".join(["#version: 0.2", *merges]) + "\n"
    folder = written(tmp_path / "raw", kind, config, vocab__json=json.dumps(vocab), merges__txt=text)
    theirs = getattr(transformers, kind).from_pretrained(folder)
    both_ways(theirs, folder, family, tmp_path)


@pytest.mark.parametrize(
    "config",
    [{"add_bos_token": True, "add_eos_token": False}, {"add_bos_token": True, "add_eos_token": True, "legacy": True},
     {"add_bos_token": False, "add_prefix_space": False, "pad_token": "<unk>"}],
)  # fmt: skip
def test_llama(config, tmp_path):
    folder = written(tmp_path / "raw", "LlamaTokenizer", config, tokenizer__model=trained(**MODEL["llama"]))
    theirs = transformers.LlamaTokenizer.from_pretrained(folder)
    both_ways(theirs, folder, "llama", tmp_path)


def test_llama_with_added_tokens(tmp_path):
    folder = written(
        tmp_path / "raw", "LlamaTokenizer", {"add_bos_token": True}, tokenizer__model=trained(**MODEL["llama"])
    )
    theirs = transformers.LlamaTokenizer.from_pretrained(folder)
    theirs.add_tokens([tokenizers.AddedToken("<image>", special=True, normalized=False)])
    theirs.add_tokens([f"<loc_{i:03d}>" for i in range(5)])
    theirs.save_pretrained(tmp_path / "more")
    agree(theirs, tmp_path / "more", "llama")
    ours = Tokenizer.from_folder(folder, context_length=64, model_type="llama")
    size = ours.size
    assert ours.add_tokens(["<image>"], special=True) == [size] == [theirs.convert_tokens_to_ids("<image>")]
    places = ours.add_tokens([f"<loc_{i:03d}>" for i in range(5)])
    assert places == [*range(size + 1, size + 6)] and ours.size == len(theirs)
    assert ours.encode(["a <image>\n<loc_003>"], special=False)[0].count(size) == 1
    assert ours.decode([size, places[3], places[0]]) == theirs.decode(
        [size, places[3], places[0]], skip_special_tokens=True
    )
    (tmp_path / "ours").mkdir()
    ours.save(tmp_path / "ours")
    back = agree(transformers.LlamaTokenizer.from_pretrained(tmp_path / "ours"), tmp_path / "ours", "llama")
    assert back.token_id("<loc_003>") == places[3]


def test_gemma(tmp_path):
    config = {"add_bos_token": True, "pad_token": "<pad>"}
    folder = written(tmp_path / "raw", "GemmaTokenizer", config, tokenizer__model=trained(**MODEL["gemma"]))
    theirs = transformers.GemmaTokenizer.from_pretrained(folder)
    both_ways(theirs, folder, "gemma", tmp_path)


def test_t5(tmp_path):
    folder = written(tmp_path / "raw", "T5Tokenizer", {}, spiece__model=trained(**MODEL["t5"]))
    theirs = transformers.T5Tokenizer.from_pretrained(folder)
    both_ways(theirs, folder, "t5", tmp_path)
    ours = Tokenizer.from_folder(folder, context_length=64, model_type="t5")
    assert ours.token_id("<extra_id_0>") == ours.size - 1


@pytest.mark.parametrize("config", [{}, {"do_lower_case": False, "strip_accents": False}])
def test_bert(config, tmp_path):
    backend = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    backend.train_from_iterator(
        corpus(), trainers.WordPieceTrainer(vocab_size=300, special_tokens=specials, show_progress=False)
    )
    names = sorted(backend.get_vocab().items(), key=lambda pair: pair[1])
    folder = written(tmp_path / "raw", "BertTokenizer", config, vocab__txt="".join(f"{n}\n" for n, _ in names))
    theirs = transformers.BertTokenizer.from_pretrained(folder)
    both_ways(theirs, folder, "bert", tmp_path)


def test_a_folder_without_a_config_is_read_by_its_model_type(tmp_path, byte_files):
    (tmp_path / "tokenizer.model").write_bytes(trained(**MODEL["llama"]))
    ours = Tokenizer.from_folder(tmp_path, context_length=64, model_type="llama")
    assert ours.encode(["a cat"])[0][0] == ours.token_id("<s>") == 1  # trained with it, so it starts with it
    assert ours.rules.side == "left" and ours(["a", "a cat on"])["input_ids"][0, 0] == 2  # padded with </s>


def test_a_llama_with_bytes_is_taken_as_it_is(tmp_path, byte_files):
    """Llama 3 names LlamaTokenizer, but its file works on bytes."""
    vocab, merges = byte_files
    folder = written(tmp_path, "x", {}, vocab__json=json.dumps(vocab), merges__txt="\n".join(merges))
    theirs = transformers.GPT2Tokenizer.from_pretrained(folder)
    theirs.save_pretrained(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())
    (tmp_path / "saved" / "tokenizer_config.json").write_text(
        json.dumps({**config, "tokenizer_class": "LlamaTokenizer"})
    )
    agree(theirs, tmp_path / "saved", "llama")


def test_nothing_is_cut_and_names_are_found(tmp_path):
    folder = written(tmp_path, "T5Tokenizer", {}, spiece__model=trained(**MODEL["t5"]))
    ours = Tokenizer.from_folder(folder, context_length=5, model_type="t5")
    assert ours(["a cat " * 20])["input_ids"].shape[1] > 20
    assert ours.token_id("</s>") == 1 and ours.token_id("cat") == ours.token_id("▁cat")
    with pytest.raises(TokenizerError, match=r'no token "<image>"'):
        ours.token_id("<image>")


@pytest.mark.parametrize("family", ["llama", "qwen2", "t5"])
def test_streams_never_split_a_character(family, tmp_path, byte_files):
    """Joined pieces are the decoded whole; no piece ends in half a character."""
    if family == "qwen2":
        vocab, merges = byte_files
        text = "\n".join(merges)
        folder = written(tmp_path, "Qwen2Tokenizer", {}, vocab__json=json.dumps(vocab), merges__txt=text)
    else:
        name = "spiece__model" if family == "t5" else "tokenizer__model"
        folder = written(
            tmp_path, {"llama": "LlamaTokenizer", "t5": "T5Tokenizer"}[family], {}, **{name: trained(**MODEL[family])}
        )
    ours = Tokenizer.from_folder(folder, context_length=64, model_type=family)
    for text in TEXTS:
        ids = ours.encode([text], special=False)[0]
        stream = TextStream(ours)
        pieces = [*(stream.push(i) for i in ids), stream.close()]
        assert "".join(pieces) == ours.decode(ids), text
        if "\N{REPLACEMENT CHARACTER}" not in text:
            assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces), text


def test_a_stream_shows_bytes_that_are_no_character(tmp_path):
    folder = written(tmp_path, "LlamaTokenizer", {}, tokenizer__model=trained(**MODEL["llama"]))
    ours = Tokenizer.from_folder(folder, context_length=64, model_type="llama")
    stream = TextStream(ours)
    half = [ours.token_id("<0xE6>"), ours.token_id("<0x97>")]
    assert [stream.push(i) for i in half] == ["", ""] and "\N{REPLACEMENT CHARACTER}" in stream.close()


@pytest.mark.parametrize(
    ("pattern", "taken"),
    [
        (r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+", True),  # GPT-2
        (  # Llama 3
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
            r"|\s+(?!\S)|\s+",
            True,
        ),
        (r"(\p{L}+)+x", False),
        (r"\p{L}+*", False),
    ],
)
def test_official_word_rules_are_taken_and_bombs_are_not(pattern, taken, tmp_path):
    record = {
        "version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0, "<pad>": 1}, "merges": []},
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
    }  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(record))
    if taken:
        ours = Tokenizer.from_folder(tmp_path, context_length=8, model_type="llama")
        assert ours.encode(["aa"], special=False) == [[0, 0]]
        return
    with pytest.raises(TokenizerError, match="regular expression"):
        Tokenizer.from_folder(tmp_path, context_length=8, model_type="llama")
