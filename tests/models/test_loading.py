"""A checkpoint folder as transformers writes it, through `load`, and back: model, pixels and ids."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from models.odd_texts import ODD
from models.test_sentencepiece import trained
from parity.tiny import CLIP_TEXT, CLIP_VISION, SIGLIP_TEXT, SIGLIP_VISION, VIT, assert_equal
from sightline.errors import ConfigError, RuntimeChoiceError, UsageError
from sightline.models.contrastive.clip import CLIP
from sightline.models.contrastive.siglip import SigLIP
from sightline.models.contrastive.siglip2 import SigLIP2
from sightline.models.language.backends import END, START
from sightline.models.vision.vit import ViTClassifier
from sightline.models.zoo import ZOO, load, model_class

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def small_clip_tokenizer(folder: Path) -> transformers.CLIPTokenizer:
    """Every byte, and a few merges: nothing is ever unknown."""
    from tokenizers import pre_tokenizers

    from sightline.models.language.backends import openai_vocabulary  # noqa: F401  (the byte letters are OpenAI's)

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("c", "a"), ("ca", "t</w>"), ("t", "h"), ("th", "e</w>")]
    tokens = [*letters, *(x + "</w>" for x in letters), *(a + b for a, b in merges), START, END]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(m) for m in merges)]) + "\n")
    return transformers.CLIPTokenizer.from_pretrained(folder)


def photographs() -> list[Image.Image]:
    noise = np.random.default_rng(0)
    return [
        Image.fromarray(noise.integers(0, 256, (h, w, 3), dtype=np.uint8)) for h, w in ((61, 47), (40, 83), (35, 35))
    ]


@pytest.fixture
def clip(awake, saved, tmp_path):
    tokenizer = small_clip_tokenizer(tmp_path / "words")
    text = {
        **CLIP_TEXT,
        "vocab_size": len(tokenizer),
        "eos_token_id": tokenizer.eos_token_id,
        "max_position_embeddings": 77,
    }
    config = transformers.CLIPConfig(text_config=text, vision_config=CLIP_VISION, projection_dim=11)
    pictures = transformers.CLIPImageProcessor(
        size={"shortest_edge": 35}, crop_size={"height": 35, "width": 35}, image_mean=[0.4, 0.5, 0.6]
    )  # OpenCLIP's other mean
    processor = transformers.CLIPProcessor(pictures, tokenizer)
    model = awake(transformers.CLIPModel(config))
    return model, processor, saved(model, processor)


def test_clip_pixels_ids_and_logits(clip, tmp_path):
    theirs, processor, folder = clip
    ours = load(folder, dtype="float32")
    assert type(ours) is CLIP and ours.dtype == torch.float32 and not ours.training
    options = {"padding": True, "truncation": True, "max_length": 77, "return_tensors": "pt"}
    want = processor(images=photographs(), text=ODD, **options)
    got = ours.processor(pictures=photographs(), texts=ODD)
    assert set(got) == set(want) and all(torch.equal(got[k], want[k]) for k in want)
    with torch.no_grad():
        assert_equal(ours(**got).logits_per_image, theirs(**want).logits_per_image)
    saved_folder = ours.save(tmp_path / "ours")
    again = transformers.CLIPProcessor.from_pretrained(saved_folder)(images=photographs(), text=ODD, **options)
    assert all(torch.equal(again[k], want[k]) for k in want)
    assert isinstance(transformers.AutoModel.from_pretrained(saved_folder), transformers.CLIPModel)
    twice = load(saved_folder, dtype="float32")
    assert twice.manifest() == ours.manifest() or twice.manifest().weights_sha256 != ours.manifest().weights_sha256
    assert {**twice.manifest().to_dict(), "weights_sha256": ""} == {**ours.manifest().to_dict(), "weights_sha256": ""}


def test_siglip_pixels_ids_and_logits(awake, saved, tmp_path):
    (tmp_path / "spiece.model").write_bytes(trained(model_type="unigram", pad_id=-1, bos_id=-1, eos_id=1, unk_id=2))
    tokenizer = transformers.SiglipTokenizer(str(tmp_path / "spiece.model"), model_input_names=["input_ids"])
    text = {**SIGLIP_TEXT, "vocab_size": len(tokenizer), "max_position_embeddings": 64}
    theirs = awake(transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=SIGLIP_VISION)))
    processor = transformers.SiglipProcessor(
        transformers.SiglipImageProcessor(size={"height": 35, "width": 35}, image_mean=[0.5] * 3, image_std=[0.5] * 3),
        tokenizer,
    )
    ours = load(saved(theirs, processor), dtype="float32")
    assert type(ours) is SigLIP
    options = {"padding": "max_length", "truncation": True, "max_length": 64, "return_tensors": "pt"}
    want = processor(images=photographs(), text=ODD, **options)
    got = ours.processor(pictures=photographs(), texts=ODD)
    assert set(got) == set(want) and all(torch.equal(got[k], want[k]) for k in want)
    with torch.no_grad():
        assert_equal(ours(**got).logits_per_image, theirs(**want).logits_per_image)
    again = transformers.SiglipProcessor.from_pretrained(ours.save(tmp_path / "ours"))
    assert all(torch.equal(v, want[k]) for k, v in again(images=photographs(), text=ODD, **options).items())


def test_siglip2_pixels(awake, saved):
    vision = {**{k: v for k, v in SIGLIP_VISION.items() if k != "image_size"}, "num_patches": 25}
    theirs = awake(transformers.Siglip2Model(transformers.Siglip2Config(text_config=SIGLIP_TEXT, vision_config=vision)))
    pictures = transformers.Siglip2ImageProcessor(patch_size=7, max_num_patches=26)
    ours = load(saved(theirs, pictures), dtype="float32")
    assert type(ours) is SigLIP2 and ours.processor.tokenizer is None
    want, got = pictures(photographs(), return_tensors="pt"), ours.processor(pictures=photographs())
    assert all(torch.equal(got[k], want[k]) for k in want)
    with torch.no_grad():
        assert_equal(ours.image_features(**got), theirs.get_image_features(**want).pooler_output)


def test_vit_pixels_and_labels(awake, saved):
    theirs = awake(transformers.ViTForImageClassification(transformers.ViTConfig(**VIT, num_labels=5)))
    pictures = transformers.ViTImageProcessor(size={"height": 35, "width": 35})
    ours = load(saved(theirs, pictures), dtype="float32")
    assert type(ours) is ViTClassifier
    want, got = pictures(photographs(), return_tensors="pt"), ours.processor(pictures=photographs())
    assert torch.equal(got["pixel_values"], want["pixel_values"])
    with torch.no_grad():
        assert_equal(ours(**got).logits, theirs(**want).logits)
    with pytest.raises(UsageError, match="reads no text"):
        ours.processor(texts=["a"])


def test_dtype_and_device(clip):
    _, _, folder = clip
    assert load(folder, dtype="bfloat16").dtype == torch.bfloat16
    with pytest.raises(RuntimeChoiceError):
        load(folder, device="toaster")


def test_bfloat16_stays_close(clip):
    _, _, folder = clip
    full, half = load(folder, dtype="float32"), load(folder, dtype="bfloat16")
    inputs = full.processor(pictures=photographs())
    with torch.no_grad():
        a, b = full.image_features(**inputs), half.image_features(**inputs).float()
    assert torch.cosine_similarity(a, b).min() > 0.995


def test_fields_that_would_run_code_are_data(clip, tmp_path, monkeypatch):
    """auto_map and friends name Python files; nothing is imported, and they travel on as they were."""
    _, _, folder = clip
    marker = tmp_path / "ran"
    (folder / "evil.py").write_text(f"open({str(marker)!r}, 'w').close()\nclass Evil: pass\n")
    data = json.loads((folder / "config.json").read_text())
    data |= {"auto_map": {"AutoModel": "evil.Evil"}, "_attn_implementation_internal": "evil", "trust_remote_code": True}
    (folder / "config.json").write_text(json.dumps(data))
    monkeypatch.chdir(folder)
    ours = load(folder, dtype="float32")
    assert type(ours) is CLIP and not marker.exists()
    assert ours.config.to_dict()["auto_map"] == {"AutoModel": "evil.Evil"}


@pytest.mark.parametrize("kind", ["llamavision", "", None, 5, ["clip"], "__class__", "os"])
def test_unknown_models(kind, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(ConfigError, match=r"which Sightline does not know; it knows .*clip"):
        load(tmp_path)


def test_every_row_of_the_zoo_leads_to_a_class(tmp_path):
    for (kind, architecture), (module, name) in ZOO.items():
        if kind == "open_clip":
            continue
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, "architectures": [architecture]}))
        found = model_class(tmp_path)
        assert found.__name__ == name and found.__module__ == f"sightline.models.{module}"
        aliases = {
            "llava_llama": "llava",
            "internvl_chat": "internvl",
        }  # one layout; custom code, refused by its config
        assert found.Config.model_type == aliases.get(kind, kind)


def test_a_folder_without_processor_files(clip):
    _, _, folder = clip
    for name in ("processor_config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink(missing_ok=True)
    assert load(folder, dtype="float32").processor is None


def test_open_clip_folder_beside_a_hugging_face_one(clip, tmp_path):
    """Repositories on the hub hold both; config.json wins, as its weights are there too."""
    _, _, folder = clip
    (folder / "open_clip_config.json").write_text('{"model_cfg": {}}')
    assert type(load(folder, dtype="float32")) is CLIP


def test_sharded_weights(clip, tmp_path):
    from safetensors.torch import load_file, save_file

    _, _, folder = clip
    tensors = load_file(folder / "model.safetensors")
    split = tmp_path / "split"
    shutil.copytree(folder, split)
    (split / "model.safetensors").unlink()
    names = sorted(tensors)
    table = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({n: tensors[n] for n in part}, split / file)
        table |= dict.fromkeys(part, file)
    (split / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
    whole, parts = load(folder, dtype="float32"), load(split, dtype="float32")
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), parts.state_dict().values(), strict=True))
