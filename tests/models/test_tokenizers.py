"""`processor(texts=…)` gives the ids and masks of transformers, for every kind of tokenizer file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tokenizers
import torch
import transformers
from tokenizers import models, normalizers, pre_tokenizers, trainers

from models.odd_texts import ODD
from models.test_sentencepiece import trained
from sightline.errors import TokenizerError
from sightline.models.language.backends import END, START, clip_bpe, openai_vocabulary, read_tokenizer
from sightline.models.language.tokenizers import Rules, Tokenizer

HUB_CLIP = {  # as in openai/clip-vit-base-patch32
    **{
        name: {"content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": True,
               "__type": "AddedToken"}
        for name, token in (("unk_token", END), ("bos_token", START), ("eos_token", END))
    },
    "pad_token": END, "add_prefix_space": False, "errors": "replace", "do_lower_case": True, "model_max_length": 77,
    "tokenizer_class": "CLIPTokenizer",
}  # fmt: skip


def agree(theirs, folder: Path, *, model_type: str, length: int, padding: str | bool) -> Tokenizer:
    """Every odd text: the same ids and the same mask."""
    ours = Tokenizer.from_folder(folder, context_length=length, model_type=model_type)
    want = theirs(ODD, padding=padding, truncation=True, max_length=length, return_tensors="pt")
    got = ours(ODD)
    assert set(got) == set(want)
    for i, text in enumerate(ODD):
        for name in got:
            assert torch.equal(got[name][i], want[name][i]), (name, text)
    return ours


@pytest.fixture(scope="module")
def clip_folder(shared_data, tmp_path_factory) -> Path:
    """OpenAI's real vocabulary as vocab.json and merges.txt."""
    vocab, merges = openai_vocabulary(shared_data / "text" / "bpe_simple_vocab_16e6.txt.gz")
    assert (len(vocab), vocab[START], vocab[END], vocab["cat</w>"]) == (49408, 49406, 49407, 2368)
    folder = tmp_path_factory.mktemp("clip")
    (folder / "vocab.json").write_text(json.dumps(vocab))
    lines = ["#version: 0.2", *(" ".join(m) for m in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.parametrize("config", [None, HUB_CLIP])
def test_clip_from_vocab_and_merges(config, clip_folder, tmp_path):
    folder = tmp_path / "clip"
    shutil.copytree(clip_folder, folder)
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    theirs = transformers.CLIPTokenizer.from_pretrained(folder)
    ours = agree(theirs, folder, model_type="clip", length=77, padding=True)
    assert ours(["a photo of a cat"])["input_ids"].tolist() == [[49406, 320, 1125, 539, 320, 2368, 49407]]


def test_clip_through_tokenizer_json_both_ways(clip_folder, tmp_path):
    theirs = transformers.CLIPTokenizer.from_pretrained(clip_folder)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = agree(theirs, tmp_path / "theirs", model_type="clip", length=77, padding=True)
    (tmp_path / "ours").mkdir()
    ours.save(tmp_path / "ours")
    back = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    agree(back, tmp_path / "ours", model_type="clip", length=77, padding=True)


def test_clip_from_openais_own_file(shared_data, clip_folder, tmp_path):
    shutil.copy(shared_data / "text" / "bpe_simple_vocab_16e6.txt.gz", tmp_path)
    agree(transformers.CLIPTokenizer.from_pretrained(clip_folder), tmp_path, model_type="clip", length=77, padding=True)


def test_open_clip_pads_with_zero_to_the_context(clip_folder):
    ours = Tokenizer.from_folder(clip_folder, context_length=76, model_type="open_clip")
    got = ours(["a photo of a cat"])
    assert set(got) == {"input_ids"} and got["input_ids"].shape == (1, 76)
    assert got["input_ids"][0, :8].tolist() == [49406, 320, 1125, 539, 320, 2368, 49407, 0]


def test_decoding(clip_folder):
    ours = Tokenizer.from_folder(clip_folder, context_length=77, model_type="clip")
    assert ours.decode(ours.encode(["Hello, a cat's 日本 photo!"])[0]) == "hello , a cat 's 日本 photo !"


# ---- SigLIP: SentencePiece


@pytest.fixture(scope="module")
def spiece() -> bytes:
    """A small model with T5's special pieces, as SigLIP's: </s> is 1, <unk> is 2."""
    return trained(model_type="unigram", pad_id=-1, bos_id=-1, eos_id=1, unk_id=2)


@pytest.mark.parametrize("names", [["input_ids"], ["input_ids", "attention_mask"]])
@pytest.mark.parametrize("lower", [True, False])
def test_siglip(spiece, names, lower, tmp_path):
    (tmp_path / "spiece.model").write_bytes(spiece)
    theirs = transformers.SiglipTokenizer(str(tmp_path / "spiece.model"), model_input_names=names, do_lower_case=lower)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = agree(theirs, tmp_path / "theirs", model_type="siglip", length=64, padding="max_length")
    (tmp_path / "ours").mkdir()
    ours.save(tmp_path / "ours")
    back = transformers.SiglipTokenizer.from_pretrained(tmp_path / "ours")
    agree(back, tmp_path / "ours", model_type="siglip", length=64, padding="max_length")


def test_siglip_from_the_model_file_alone(spiece, tmp_path):
    (tmp_path / "spiece.model").write_bytes(spiece)
    ours = Tokenizer.from_folder(tmp_path, context_length=64, model_type="siglip")
    got = ours(["A cat!", "a CAT"])["input_ids"]
    assert torch.equal(got[0], got[1])  # lower-cased, punctuation stripped
    assert got.shape == (2, 64) and got[0, -1] == 1  # padded with the end of sentence
    assert ours.decode(got[0].tolist()) == "a cat"


# ---- SigLIP 2: Gemma


@pytest.fixture(scope="module")
def gemma() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A small BPE with byte fallback and Gemma's special tokens."""
    backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{i:02X}>" for i in range(256))]
    corpus = ["a photo of a cat and the dog", "A Photo of Two Cats on a table", "naïve café 日本語 テキスト"] * 5
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=specials, show_progress=False)
    backend.train_from_iterator(corpus, trainer)
    model = json.loads(backend.to_str())["model"]
    return model["vocab"], [tuple(m) for m in model["merges"]]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"add_bos_token": False, "add_eos_token": True, "padding_side": "right", "model_input_names": ["input_ids"]},
        {"add_bos_token": True, "add_eos_token": True, "padding_side": "left"},
    ],
)
def test_siglip2(gemma, options, tmp_path):
    vocab, merges = gemma
    theirs = transformers.Siglip2Tokenizer(vocab=dict(vocab), merges=list(merges), **options)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = agree(theirs, tmp_path / "theirs", model_type="siglip2", length=64, padding="max_length")
    (tmp_path / "ours").mkdir()
    ours.save(tmp_path / "ours")
    back = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    agree(back, tmp_path / "ours", model_type="siglip2", length=64, padding="max_length")


def test_siglip2_of_fixed_size_is_lower_cased_as_it_was_trained(gemma, tmp_path):
    """The hub's files say GemmaTokenizer, without lower-casing; the checkpoints were trained with it."""
    vocab, merges = gemma
    transformers.GemmaTokenizer(
        vocab=dict(vocab), merges=list(merges), add_bos_token=False, add_eos_token=True, padding_side="right"
    ).save_pretrained(tmp_path)
    ours = Tokenizer.from_folder(tmp_path, context_length=64, model_type="siglip")
    upper, lower = ours(["A CAT", "a cat"])["input_ids"]
    assert torch.equal(upper, lower) and 1 in lower


# ---- everything else


def test_other_tokenizers_are_taken_as_they_are(tmp_path):
    """A plain tokenizer.json whose class transformers does not rebuild."""
    backend = clip_bpe({"a": 0, "a</w>": 1, "b</w>": 2, START: 3, END: 4}, [])
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=END, bos_token=START, eos_token=END)
    fast.save_pretrained(tmp_path)
    ours = Tokenizer.from_folder(tmp_path, context_length=7, model_type="clip")
    assert ours(["a b", "ab a b a b a b"])["input_ids"].tolist() == [[3, 1, 2, 4, 4, 4, 4], [3, 0, 2, 1, 2, 1, 4]]


def test_padding_by_hand():
    backend = clip_bpe({"a": 0, "a</w>": 1, "b</w>": 2, START: 3, END: 4}, [])
    ours = Tokenizer(backend, Rules(4, "longest", mask=True, side="left"), 7)
    got = ours(["a b", "b"])
    assert got["input_ids"].tolist() == [[3, 1, 2, 4], [4, 3, 2, 4]]
    assert got["attention_mask"].tolist() == [[1, 1, 1, 1], [0, 1, 1, 1]]
    assert ours([], padding="max_length")["input_ids"].shape == (0, 7)


def test_lone_surrogates_and_a_bare_string():
    backend = clip_bpe({"a</w>": 1, "?</w>": 0, "b": 2, START: 3, END: 4}, [])
    ours = Tokenizer(backend, Rules(4, "longest", mask=False), 7)
    assert ours(["\ud800"])["input_ids"].tolist() == [[3, 0, 4]]
    with pytest.raises(TokenizerError, match="list of strings"):
        ours("a text")  # a string is a sequence of strings to a type checker, and never what was meant


JUNK = {
    "not JSON": '{"model":',
    "a list": "[]",
    "a number for a model": '{"model": 5}',
    "no vocabulary": '{"model": {"type": "BPE", "vocab": {}, "merges": []}}',
    "merges outside": json.dumps(
        {"model": {"type": "BPE", "vocab": {START: 0, END: 1, "a": 2}, "merges": [["a", "z"]]}}
    ),
    "merges of numbers": json.dumps({"model": {"type": "BPE", "vocab": {START: 0, END: 1}, "merges": [[1, 2]]}}),
    "another model": '{"model": {"type": "WordLevel", "vocab": {"a": 0}}}',
    "nested": "[" * 200_000,
}


@pytest.mark.parametrize("model_type", ["clip", "siglip2"])
@pytest.mark.parametrize("name", JUNK)
def test_junk_is_a_tokenizer_error(name, model_type, tmp_path):
    (tmp_path / "tokenizer.json").write_text(JUNK[name])
    with pytest.raises(TokenizerError):
        read_tokenizer(tmp_path, {}, 77, model_type)


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a*)*b", "((a|b)+)*c", "(\\w+\\s?)+$"])
def test_regular_expressions_that_blow_up_are_refused(pattern, tmp_path):
    record = {
        "version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0, "<pad>": 1}, "merges": []},
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
    }  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(record))
    with pytest.raises(TokenizerError, match="regular expression"):
        read_tokenizer(tmp_path, {"tokenizer_class": "PreTrainedTokenizerFast"}, 77, "clip")


def test_a_giant_file_is_refused_by_its_size(tmp_path):
    with (tmp_path / "tokenizer.json").open("wb") as file:
        file.truncate(65 << 20)  # sparse: takes no space
    with pytest.raises(TokenizerError, match="64 MB"):
        read_tokenizer(tmp_path, {}, 77, "clip")


def test_missing_files_are_named(tmp_path):
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        read_tokenizer(tmp_path, {}, 77, "clip")
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(TokenizerError, match=r"merges\.txt"):
        read_tokenizer(tmp_path, {}, 77, "clip")
