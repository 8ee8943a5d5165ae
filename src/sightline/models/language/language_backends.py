"""The tokenizers of language models, built from vocabulary files: what each family does to text around its pieces.

byte-level BPE (GPT-2, OPT, Phi, Qwen2, BART) · SentencePiece BPE (Llama) · SentencePiece unigram (T5) · WordPiece (BERT)

A folder with a tokenizer.json is mostly read as it is (backends.plain); these build the rest, with the ids of
transformers 5. Sources: transformers 5.23 `tokenization_*.py`; each paper's own code for the rules themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from sightline.errors import TokenizerError
from sightline.models.language.sentencepiece import CONTROL, UNIGRAM, USER, SentencePiece
from sightline.models.language.tokenizers import token_name

QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_GPT2 = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
_BART = {
    "bos_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "cls_token": "<s>", "unk_token": "<unk>",
    "pad_token": "<pad>", "mask_token": "<mask>",
}  # fmt: skip
DEFAULTS: dict[str, dict[str, str]] = {  # what a family's tokens are called when no file says it
    "llama": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    "gpt2": _GPT2,
    "qwen2": {"eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
    "bart": _BART,
    "gemma": {
        "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>", "mask_token": "<mask>",
    },
    "t5": {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"},
    "bert": {
        "unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]", "mask_token": "[MASK]",
    },
}  # fmt: skip
KINDS = {  # tokenizer_class → family
    "LlamaTokenizer": "llama", "GPT2Tokenizer": "gpt2", "CodeGenTokenizer": "gpt2", "Qwen2Tokenizer": "qwen2",
    "BartTokenizer": "bart", "RobertaTokenizer": "bart", "GemmaTokenizer": "gemma", "T5Tokenizer": "t5",
    "BertTokenizer": "bert",
}  # fmt: skip
TYPES = {  # model_type → family, for folders without a tokenizer_config.json
    "llama": "llama", "mistral": "llama", "llava": "llama", "opt": "gpt2", "phi": "gpt2", "gpt2": "gpt2",
    "qwen2": "qwen2", "qwen2_vl": "qwen2", "bart": "bart", "gemma": "gemma", "gemma2": "gemma", "paligemma": "gemma",
    "t5": "t5", "bert": "bert", "blip": "bert",
}  # fmt: skip
TAKEN_AS_THEY_ARE = ("mistral", "mixtral", "llava", "llava_next", "vipllava")  # of these, tokenizer.json decides


def family_of(kind: str, model_type: str) -> str:
    """The family by tokenizer_class, else by model_type; "" when neither says it."""
    return KINDS.get(kind) or TYPES.get(model_type, "")


def metaspace_bpe(
    vocab: dict[str, int], merges: list[tuple[str, str]], extra: Mapping[str, Any]
) -> tokenizers.Tokenizer:
    """Llama: BPE on raw text with ▁ for spaces and bytes for what is unknown.

    One ▁ is put before the text (tokenizer_config.json: "add_prefix_space"); with "legacy" also after special tokens.
    """
    prefix = extra.get("add_prefix_space")
    prefix = True if prefix is None else bool(prefix)
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges, fuse_unk=True, byte_fallback=True))
    scheme = ("always" if extra.get("legacy") else "first") if prefix else "never"
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(content=" ", left=1)] if prefix else steps)
    return backend


def byte_level_bpe(
    vocab: dict[str, int], merges: list[tuple[str, str]], extra: Mapping[str, Any], family: str
) -> tokenizers.Tokenizer:
    """GPT-2's BPE over bytes; Qwen2 splits words by a rule of its own, BART wraps texts in <s> … </s>."""
    prefix = bool(extra.get("add_prefix_space"))
    backend = tokenizers.Tokenizer(
        models.BPE(vocab=vocab, merges=merges, continuing_subword_prefix="", end_of_word_suffix="", fuse_unk=False)
    )
    if family == "qwen2":
        backend.normalizer = normalizers.NFC()
        split = pre_tokenizers.Split(Regex(QWEN_WORDS), behavior="isolated", invert=False)
        bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=False)
        backend.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_])
    else:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    backend.decoder = decoders.ByteLevel()
    if family == "bart":
        names = [token_name(extra, n, _BART[n]) for n in ("sep_token", "cls_token")]
        sep, cls = ((name, required(backend, name)) for name in names)
        backend.post_processor = processors.RobertaProcessing(sep, cls, True, prefix)
    return backend


def t5_unigram(model: SentencePiece, extra: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """T5: the likeliest pieces of each word, then 100 sentinels <extra_id_99> … <extra_id_0>, and </s> at the end."""
    count = int(extra.get("extra_ids", 100))
    pieces = [(p.text, p.score) for p in model.pieces] + [(f"<extra_id_{i}>", 0.0) for i in reversed(range(count))]
    backend = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=model.unknown, byte_fallback=False))
    if model.charsmap.blob:
        backend.normalizer = normalizers.Precompiled(model.charsmap.blob)
    spaces = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), spaces])
    backend.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    end = token_name(extra, "eos_token", "</s>")
    backend.post_processor = processors.TemplateProcessing(
        single=["$A", end], pair=["$A", end, "$B", end], special_tokens=[(end, required(backend, end))]
    )
    backend.add_special_tokens([AddedToken(f"<extra_id_{i}>", normalized=False) for i in reversed(range(count))])
    return backend


def word_piece(path: Path, extra: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """BERT: words, then the longest pieces that fit (vocab.txt: one a line, ## for a word's later pieces)."""
    lines = path.read_text(encoding="utf-8").split("\n")
    vocab = {line.rstrip("\r"): i for i, line in enumerate(lines[:-1] if lines[-1] == "" else lines)}
    names = {n: token_name(extra, n, d) for n, d in DEFAULTS["bert"].items()}
    backend = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token=names["unk_token"]))
    backend.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=bool(extra.get("tokenize_chinese_chars", True)),
        strip_accents=extra.get("strip_accents"),
        lowercase=bool(extra.get("do_lower_case", True)),
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    cls, sep = names["cls_token"], names["sep_token"]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{cls}:0 $A:0 {sep}:0",
        pair=f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1",
        special_tokens=[(cls, required(backend, cls)), (sep, required(backend, sep))],
    )
    return backend


def from_sentencepiece(path: Path, extra: Mapping[str, Any], family: str) -> tokenizers.Tokenizer:
    """A tokenizer.model or spiece.model. Unigram files are read as T5's, BPE files as Llama's unless they are Gemma's.

    Where no file says whether a text starts with <s> (<bos>), it does: these models were trained so.
    """
    from sightline.models.language.backends import gemma_bpe, wrap

    model = SentencePiece.from_file(path)
    listed = [AddedToken(p.text, normalized=False, special=p.kind == CONTROL)
              for p in model.pieces if p.kind in (CONTROL, USER)]  # fmt: skip
    if model.algorithm == UNIGRAM:
        backend = t5_unigram(model, extra)
        backend.add_tokens(listed)
        return backend
    vocab = model.ids
    merges = merges_of(vocab)
    start = {"add_bos_token": True, **DEFAULTS.get(family, DEFAULTS["llama"]), **extra}
    if family == "gemma":
        return gemma_bpe(vocab, merges, lower=False, extra=start, added=listed)
    backend = metaspace_bpe(vocab, merges, extra)
    backend.add_tokens(listed)
    wrap(backend, start, forced=True)
    return backend


def merges_of(vocab: Mapping[str, int]) -> list[tuple[str, str]]:
    """The merges that a SentencePiece BPE vocabulary implies: every way to make a piece of two, earlier pieces first."""
    found = [
        (rank, cut, piece)
        for piece, rank in vocab.items()
        for cut in range(1, len(piece))
        if piece[:cut] in vocab and piece[cut:] in vocab
    ]
    return [(piece[:cut], piece[cut:]) for _, cut, piece in sorted(found)]


def name_specials(backend: tokenizers.Tokenizer, extra: Mapping[str, Any], family: str) -> None:
    """Tokens that tokenizer_config.json (or the family) names count as whole wherever they stand in a text."""
    known = {t.content for t in backend.get_added_tokens_decoder().values()}
    records = extra.get("added_tokens_decoder")
    if isinstance(records, dict):
        keys = ("single_word", "lstrip", "rstrip", "normalized", "special")
        fresh = [r for _, r in sorted((int(i), r) for i, r in records.items()) if r["content"] not in known]
        backend.add_tokens([AddedToken(r["content"], **{k: bool(r[k]) for k in keys if k in r}) for r in fresh])
        known |= {r["content"] for r in fresh}
    defaults = DEFAULTS.get(family, {})
    names = [token_name(extra, n, defaults.get(n, "")) for n in NAMES]
    for key in ("additional_special_tokens", "extra_special_tokens"):
        listed = extra.get(key) or []
        listed = list(listed.values()) if isinstance(listed, dict) else listed
        names += [n for token in listed if (n := token_name({"t": token}, "t", "")) not in known]
    special = {t.content for t in backend.get_added_tokens_decoder().values() if t.special}
    fresh_names = [n for n in dict.fromkeys(names) if n and n not in special]
    backend.add_special_tokens([AddedToken(n, normalized=False, special=True) for n in fresh_names])


def padding_of(backend: tokenizers.Tokenizer, extra: Mapping[str, Any], family: str) -> int:
    """The id to pad with. Many language models name none; then any will do, since the mask says what is real."""
    if extra.get("pad_token") is not None:
        return required(backend, token_name(extra, "pad_token", ""))
    defaults = DEFAULTS.get(family, {})
    names = [defaults.get("pad_token"), "<pad>", "[PAD]"]
    names += [token_name(extra, n, defaults.get(n, "")) for n in ("eos_token", "unk_token")]
    found = [number for n in names if n and (number := backend.token_to_id(n)) is not None]
    return int(found[0]) if found else 0


def required(backend: tokenizers.Tokenizer, name: str) -> int:
    """The id of a token that must be there."""
    number = backend.token_to_id(name)
    if number is None:
        raise TokenizerError(f'the tokenizer has no token "{name}", which its family or tokenizer_config.json names.')
    return int(number)
