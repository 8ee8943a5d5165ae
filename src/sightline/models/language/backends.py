"""Readers of tokenizer files: each gives a Tokenizer that yields the official ids.

CLIP's, Gemma's and Llama's are built anew from the vocabulary and merges in the files, as transformers 5 does; a file's
own regular expressions are run only for other families, and only if they cannot blow up.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from sightline.errors import ConfigError, SightlineError, TokenizerError
from sightline.hub import read_json
from sightline.models.language.language_backends import (
    DEFAULTS,
    TAKEN_AS_THEY_ARE,
    byte_level_bpe,
    family_of,
    from_sentencepiece,
    metaspace_bpe,
    name_specials,
    padding_of,
    word_piece,
)
from sightline.models.language.tokenizers import Rules, Side, Tokenizer, token_name

START, END = "<|startoftext|>", "<|endoftext|>"
WORDS = r"""<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""
LARGEST = 64 << 20  # bytes; Gemma's tokenizer.json, the largest in use, has 34 MB
CLASS = re.compile(r"\\[pPx]\{[^{}]*\}")  # \p{L}: these braces count nothing
BOMB = re.compile(r"[+*}]\)?[+*{]|\([^()]*[+*][^()]*\)[+*{]")  # a quantifier of a quantifier


def read_tokenizer(folder: Path, extra: dict[str, Any], context_length: int, model_type: str) -> Tokenizer:
    """The tokenizer of a checkpoint folder; TokenizerError names what is wrong with its files."""
    try:
        return _read(folder, extra, context_length, model_type)
    except ConfigError as error:
        raise TokenizerError(str(error)) from None
    except SightlineError:
        raise
    except Exception as error:  # the Rust side raises bare Exception
        what = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise TokenizerError(f"the tokenizer files in {folder} are damaged ({what}); fetch them again.") from None


def _read(folder: Path, extra: dict[str, Any], context_length: int, model_type: str) -> Tokenizer:
    kind = str(extra.get("tokenizer_class", "")).removesuffix("Fast")
    siglip, clip = model_type.startswith("siglip"), model_type in ("clip", "clip_text_model", "open_clip")
    family = "" if siglip or clip else family_of(kind, model_type)
    if siglip and (folder / "spiece.model").is_file() and kind in ("", "SiglipTokenizer"):
        from sightline.models.language.sentencepiece import SentencePiece
        from sightline.models.language.siglip_words import SigLIPTokenizer

        return SigLIPTokenizer(SentencePiece.from_file(folder / "spiece.model"), context_length, extra)
    if (folder / "tokenizer.json").is_file():
        data = read_limited(folder / "tokenizer.json")
        added = _added(extra, data.get("added_tokens", []))
        if kind == "CLIPTokenizer" or (not kind and clip):
            backend = clip_bpe(*vocabulary(data), extra=extra, added=added)
        elif kind in ("GemmaTokenizer", "Siglip2Tokenizer") or (not kind and siglip):
            template = data.get("post_processor")
            backend = gemma_bpe(*vocabulary(data), lower=siglip, extra=extra, added=added, template=template)
        elif kind == "LlamaTokenizer" and model_type not in TAKEN_AS_THEY_ARE and not byte_level(data):
            backend = metaspace_bpe(*vocabulary(data), extra)
            backend.add_tokens(added)
            template = data.get("post_processor")
            backend.post_processor = None if template is None else post_processor(template)
            wrap(backend, {**DEFAULTS["llama"], **extra}, forced=False)
        else:
            backend = plain(data, extra)
    elif (folder / "vocab.json").is_file():
        vocab, merges = read_json(folder / "vocab.json"), read_merges(folder / "merges.txt")
        if kind == "CLIPTokenizer" or clip or not family:
            backend = clip_bpe(vocab, merges, extra=extra, added=_added(extra, []))
        else:
            backend = byte_level_bpe(vocab, merges, extra, family)
            wrap(backend, {**DEFAULTS[family], **extra}, forced=False)
    elif pieces := next((p for n in ("tokenizer.model", "spiece.model") if (p := folder / n).is_file()), None):
        backend = from_sentencepiece(pieces, extra, family)
    elif (folder / "vocab.txt").is_file():
        backend = word_piece(folder / "vocab.txt", extra)
    elif (folder / "bpe_simple_vocab_16e6.txt.gz").is_file():
        backend = clip_bpe(*openai_vocabulary(folder / "bpe_simple_vocab_16e6.txt.gz"))
    else:
        raise TokenizerError(f"{folder} holds no tokenizer that Sightline reads; it needs a tokenizer.json.")
    if not (siglip or clip or kind == "CLIPTokenizer"):
        name_specials(backend, extra, family)
        side: Side = "left" if family in ("llama", "gemma") else "right"
        rules = Rules.of(extra, padding_of(backend, extra, family), "longest", side)
        return Tokenizer(backend, replace(rules, cut=None), context_length, extra)
    pad = token_name(extra, "pad_token", END if clip else "<pad>")
    pad_id = backend.token_to_id(pad)
    if pad_id is None:
        raise TokenizerError(f'the tokenizer has no padding token "{pad}", which tokenizer_config.json names.')
    if model_type == "open_clip":  # open_clip pads with 0, and CoCa's mask relies on it
        return Tokenizer(backend, Rules(0, "max_length", mask=False), context_length, extra)
    side = "left" if kind in ("GemmaTokenizer", "Siglip2Tokenizer") else "right"
    return Tokenizer(
        backend, Rules.of(extra, pad_id, "max_length" if siglip else "longest", side), context_length, extra
    )


def read_limited(path: Path) -> dict[str, Any]:
    """tokenizer.json, within a size that every published one keeps."""
    if path.stat().st_size > LARGEST:
        raise TokenizerError(f"{path} is larger than {LARGEST >> 20} MB, which no tokenizer is; fetch it again.")
    return read_json(path)


def vocabulary(data: Mapping[str, Any]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of a tokenizer.json that holds a byte-pair encoding."""
    model = data.get("model") or {}
    if model.get("type", "BPE") != "BPE" or not isinstance(model.get("vocab"), dict):
        raise TokenizerError(f'tokenizer.json holds a model of type "{model.get("type")}"; this family needs BPE.')
    merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model.get("merges", [])]
    return model["vocab"], [(m[0], m[1]) for m in merges]


def read_merges(path: Path) -> list[tuple[str, str]]:
    """CLIP's merges.txt: one pair a line, after a version line."""
    if not path.is_file():
        raise TokenizerError(f"{path} is missing; vocab.json needs it beside it.")
    pairs = [tuple(line.split()) for line in path.read_text(encoding="utf-8").splitlines() if line[:9] != "#version:"]
    return [(p[0], p[1]) for p in pairs if len(p) == 2]


def openai_vocabulary(path: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """OpenAI's original file: merges only; the vocabulary follows from them (bytes, bytes at a word's end, merges)."""
    with gzip.open(path) as file:
        lines = file.read(LARGEST).decode("utf-8").split("\n")[1 : 49152 - 256 - 2 + 1]
    merges = [(pair[0], pair[1]) for pair in (line.split() for line in lines) if len(pair) == 2]
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    tokens = [*letters, *(letter + "</w>" for letter in letters), *(a + b for a, b in merges), START, END]
    return {token: i for i, token in enumerate(tokens)}, merges


def clip_bpe(
    vocab: dict[str, int],
    merges: list[tuple[str, str]],
    *,
    extra: Mapping[str, Any] | None = None,
    added: list[AddedToken] | None = None,
) -> tokenizers.Tokenizer:
    """CLIP's lower-cased byte-level BPE with end-of-word marks; wraps every text in start and end tokens."""
    start, end = token_name(extra or {}, "bos_token", START), token_name(extra or {}, "eos_token", END)
    unknown = token_name(extra or {}, "unk_token", END)
    for token in (start, end):
        if token not in vocab and token not in {t.content for t in added or []}:
            raise TokenizerError(f'the tokenizer\'s vocabulary lacks "{token}", with which CLIP wraps every text.')
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab=vocab, merges=merges, continuing_subword_prefix="", end_of_word_suffix="</w>", unk_token=unknown
        )
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens(added or [])
    backend.add_special_tokens([t for t in (start, end) if t not in {a.content for a in added or []}])
    last, first = ((token, int(backend.token_to_id(token) or 0)) for token in (end, start))
    backend.post_processor = processors.RobertaProcessing(last, first, trim_offsets=False, add_prefix_space=False)
    return backend


def gemma_bpe(
    vocab: dict[str, int],
    merges: list[tuple[str, str]],
    *,
    lower: bool,
    extra: Mapping[str, Any],
    added: list[AddedToken],
    template: Mapping[str, Any] | None = None,
) -> tokenizers.Tokenizer:
    """Gemma's BPE on raw text with byte fallback. SigLIP 2 was trained on lower-cased text; its files do not say so."""
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab=vocab,
            merges=merges,
            fuse_unk=True,
            unk_token=token_name(extra, "unk_token", "<unk>"),
            byte_fallback=True,
        )
    )
    spaces = normalizers.Replace(" ", "▁")
    backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), spaces]) if lower else spaces
    backend.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous", invert=False)
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    names = [token_name(extra, n, d) for n, d in GEMMA_SPECIALS.items()]
    backend.add_tokens(added)
    backend.add_special_tokens([t for t in names if t in vocab and t not in {a.content for a in added}])
    if template is not None:
        backend.post_processor = post_processor(template)
    wrap(backend, extra, forced=template is None)
    return backend


GEMMA_SPECIALS = {
    "bos_token": "<bos>",
    "eos_token": "<eos>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
    "mask_token": "<mask>",
}


def plain(data: dict[str, Any], extra: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """tokenizer.json as it is, unless one of its regular expressions could take for ever."""
    for pattern in _patterns([data.get("normalizer"), data.get("pre_tokenizer"), data.get("decoder")]):
        if len(pattern) > 2000 or BOMB.search(CLASS.sub("x", pattern)):
            raise TokenizerError(
                f"tokenizer.json holds a regular expression that could take for ever ({pattern[:60]!r}); "
                "use a checkpoint whose tokenizer does not."
            )
    backend = tokenizers.Tokenizer.from_str(json.dumps(data))
    wrap(backend, extra, forced=False)
    return backend


def wrap(backend: tokenizers.Tokenizer, extra: Mapping[str, Any], *, forced: bool) -> None:
    """Start and end tokens as tokenizer_config.json asks for; without a word there, the file's own rule stays."""
    if not forced and "add_bos_token" not in extra and "add_eos_token" not in extra:
        return
    start = token_name(extra, "bos_token", "<bos>") if extra.get("add_bos_token") else None
    end = token_name(extra, "eos_token", "<eos>") if extra.get("add_eos_token") else None
    specials = [(token, backend.token_to_id(token)) for token in (start, end) if token]
    lacking = [token for token, number in specials if number is None]
    if lacking:
        raise TokenizerError(f'the tokenizer has no token "{lacking[0]}", which tokenizer_config.json asks for.')
    single = " ".join(f"{part}:0" for part in (start, "$A", end) if part)
    backend.post_processor = processors.TemplateProcessing(
        single=single, pair=f"{single} $B:1", special_tokens=specials
    )


def post_processor(template: Mapping[str, Any]) -> Any:
    """The post-processor record of a tokenizer.json as an object."""
    empty = {"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": []}}
    return tokenizers.Tokenizer.from_str(json.dumps({**empty, "post_processor": template})).post_processor


def _added(extra: Mapping[str, Any], listed: Any) -> list[AddedToken]:
    """Added tokens in the order of their ids: those of tokenizer_config.json, else those of tokenizer.json."""
    named = extra.get("added_tokens_decoder")
    records = {int(i): record for i, record in named.items()} if isinstance(named, dict) else None
    if records is None:
        records = {int(record["id"]): record for record in listed}
    keys = ("single_word", "lstrip", "rstrip", "normalized", "special")
    return [AddedToken(r["content"], **{k: bool(r[k]) for k in keys if k in r}) for _, r in sorted(records.items())]


def byte_level(data: Mapping[str, Any]) -> bool:
    """Whether a tokenizer.json works on bytes, as Llama 3's does, whatever class it names."""
    return '"ByteLevel"' in json.dumps([data.get("pre_tokenizer"), data.get("decoder")])


def _patterns(node: Any) -> list[str]:
    if isinstance(node, dict):
        own = [node["Regex"]] if isinstance(node.get("Regex"), str) else []
        return own + [p for value in node.values() for p in _patterns(value)]
    return [p for value in node for p in _patterns(value)] if isinstance(node, list) else []
