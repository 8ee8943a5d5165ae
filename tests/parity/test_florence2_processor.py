"""Florence-2's processor equals transformers': pixels, prompts, files both ways; Microsoft's own files; asking."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from parity.test_florence2 import TEXT, VISION, opened
from parity.tiny import assert_equal, assert_same_state
from sightline.errors import ConfigError, TokenizerError, UsageError, WeightsError
from sightline.media import Boxes, Picture
from sightline.models.language.generate import Generation
from sightline.models.vlm.florence2 import Florence2
from sightline.models.vlm.florence2_processor import PLACES, RULES
from sightline.models.vlm.florence2_tasks import BANNED, TASKS, prompt
from sightline.models.zoo import load

VOCABULARY = 5 + 256 + len(PLACES)  # <s> <pad> </s> <unk> <mask>, bytes, places; <image> comes behind
SIDE = 96  # a map of 3×3 places
TASK_TEXTS = [
    "<OD>",
    "<CAPTION_TO_PHRASE_GROUNDING> a naïve mug, and {a box}",
    "<REGION_TO_CATEGORY><loc_1><loc_20><loc_300><loc_999>",
    "what is 本 this ?",
    "",
]


def byte_tokenizer(added):
    names = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE(vocab={n: i for i, n in enumerate(names)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), True, False)
    backend.add_special_tokens([AddedToken(n, special=True, normalized=False) for n in (*names[:5], *added)])
    image = {"extra_special_tokens": {"image_token": "<image>"}} if "<image>" in added else {}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>", **image
    )


def official_processor(visual=10, **changes):
    numbers = {"size": {"height": SIDE, "width": SIDE}, "do_center_crop": False, "resample": 3, **changes}
    pictures = transformers.CLIPImageProcessorPil(
        **numbers, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225]
    )
    pictures.image_seq_length = visual
    rules = {name: {} for name in RULES} | {"phrase_grounding": {"banned_grounding_tokens": sorted(BANNED)}}
    return transformers.Florence2Processor(pictures, byte_tokenizer([*PLACES, "<image>"]), post_processor_config=rules)


def checkpoint(awake, saved, text=(), processor=None):
    """A reference model with a processor, and the folder of both."""
    config = transformers.Florence2Config(
        vision_config=VISION,
        text_config={**TEXT, "vocab_size": VOCABULARY + 3, "max_position_embeddings": 211, **dict(text)},
        image_token_id=VOCABULARY,
    )
    model = awake(transformers.Florence2ForConditionalGeneration(config))
    processor = processor or official_processor()
    return model, processor, saved(model, processor)


def photos():
    noise = np.random.default_rng(3)
    return [
        Image.fromarray(noise.integers(0, 256, (h, w, 3), dtype=np.uint8))
        for h, w in [(53, 41), (37, 171), (96, 96), (7, 5), (300, 2)]
    ]


def microsoft(folder, into):
    """The same checkpoint as Microsoft's own files have it."""
    into.mkdir()
    config = json.loads((folder / "config.json").read_text())
    vision, text = config["vision_config"], config["text_config"]
    vision |= {"dim_embed": vision.pop("embed_dim"), "model_type": "davit", "enable_checkpoint": False}
    vision["image_pos_embed"] = {"type": "learned_abs_2d", "max_pos_embeddings": vision.pop("max_position_embeddings")}
    vision["visual_temporal_embedding"] = {
        "type": "COSINE", "max_temporal_embeddings": vision.pop("max_temporal_embeddings")
    }  # fmt: skip
    vision["image_feature_source"] = ["spatial_avg_pool", "temporal_avg_pool"]
    text |= {"model_type": "florence2_language", "num_beams": 2, "no_repeat_ngram_size": 3, "forced_bos_token_id": 0}
    text["vocab_size"] = VOCABULARY
    own = {"auto_map": {"AutoConfig": "configuration_florence2.Florence2Config"}, "projection_dim": 24}
    own |= {
        "vision_config": vision,
        "text_config": text,
        "model_type": "florence2",
        "architectures": config["architectures"],
    }
    (into / "config.json").write_text(json.dumps(own))
    tensors = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        name = name.removeprefix("model.").removeprefix("multi_modal_projector.")
        if name.startswith("language_model."):
            name = name.replace("language_model.", "language_model.model.", 1)
            tensor = tensor[:VOCABULARY] if name.endswith("shared.weight") else tensor
        for old, new in [
            ("image_position_embed", "image_pos_embed"), ("image_projection.weight", "image_projection"),
            (".conv1.", ".conv1.fn.dw."), (".conv2.", ".conv2.fn.dw."), (".norm2.", ".ffn.norm."),
            (".ffn.fc", ".ffn.fn.net.fc"), ("attn.qkv", "attn.fn.qkv"), ("attn.proj", "attn.fn.proj"),
            ("spatial_block.norm1.", "spatial_block.window_attn.norm."),
            ("channel_block.norm1.", "channel_block.channel_attn.norm."),
        ]:  # fmt: skip
            name = name.replace(old, new)
        if name.startswith("vision_tower.convs"):
            name = name.replace(".conv.", ".proj.")
        tensors[name] = tensor.T.contiguous() if name == "image_projection" else tensor.contiguous()
    shared = tensors["language_model.model.shared.weight"]
    for name in ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight"):
        tensors[f"language_model.{name}"] = shared.clone()
    tensors["language_model.final_logits_bias"] = torch.zeros(1, VOCABULARY)
    save_file(tensors, into / "model.safetensors")
    byte_tokenizer([]).save_pretrained(into)
    pictures = {**official_processor().image_processor.to_dict(), "image_seq_length": 10}
    (into / "preprocessor_config.json").write_text(json.dumps(pictures))
    return into


def test_inputs(awake, saved, tmp_path):
    _, theirs, folder = checkpoint(awake, saved)
    ours = load(folder, device="cpu", dtype="float32")
    want = theirs(images=photos(), text=TASK_TEXTS, padding=True, return_tensors="pt")
    got = ours.processor(photos(), TASK_TEXTS)
    back = transformers.Florence2Processor.from_pretrained(ours.save(tmp_path / "ours"), backend="pil")
    again = back(images=photos(), text=TASK_TEXTS, padding=True, return_tensors="pt")
    own = load(tmp_path / "ours", device="cpu", dtype="float32").processor(photos(), TASK_TEXTS)
    for name in ("input_ids", "attention_mask", "pixel_values"):
        assert torch.equal(got[name], want[name]), name
        assert torch.equal(again[name], want[name]), name
        assert torch.equal(own[name], want[name]), name
    assert (
        back.post_processor.banned_grounding_tokens
        == theirs.post_processor.banned_grounding_tokens
        == ours.processor.banned
    )
    plain = theirs(text=TASK_TEXTS[:4], padding=True, return_tensors="pt")
    assert torch.equal(ours.processor(texts=TASK_TEXTS[:4])["input_ids"], plain["input_ids"])
    assert ours.processor(photos()[:2])["input_ids"].shape == (2, 12)  # 10 places, <s>, </s>
    for name, task in TASKS.items():
        told = theirs._construct_prompts(name + ("a {b}" if task.asks else ""))
        assert [prompt(name, "a {b}" if task.asks else "")] == told
    assert set(TASKS) == set(theirs.tasks_answer_post_processing_type)


def test_microsofts_files(awake, saved, tmp_path):
    """The same numbers as the converted checkpoint; saved as it came; its processor adds the places and <image>."""
    theirs, _, folder = checkpoint(awake, saved)
    source = microsoft(folder, tmp_path / "microsoft")
    ours, converted = load(source, device="cpu", dtype="float32"), load(folder, device="cpu", dtype="float32")
    want = converted.processor(photos(), TASK_TEXTS)
    inputs = ours.processor(photos(), TASK_TEXTS)
    assert all(torch.equal(inputs[name], want[name]) for name in want)
    with torch.no_grad():
        assert_equal(ours(**inputs).logits, theirs(**want).logits[..., :VOCABULARY])
    assert ours.habits.options((2,)).num_beams == 2 and ours.habits.forced("forced_bos_token_id") == 0
    kept = ours.save(tmp_path / "kept")
    read, wrote = (json.loads((f / "config.json").read_text()) for f in (source, kept))
    assert read == {k: wrote[k] for k in read} and "image_token_id" not in wrote
    names = {"language_model.model.encoder.embed_tokens.weight", "language_model.model.decoder.embed_tokens.weight",
             "language_model.lm_head.weight"}  # fmt: skip
    tensors = load_file(source / "model.safetensors")
    assert_same_state(load_file(kept / "model.safetensors"), {k: v for k, v in tensors.items() if k not in names})
    again = load(kept, device="cpu", dtype="float32")
    assert torch.equal(again.processor(photos(), TASK_TEXTS)["input_ids"], inputs["input_ids"])
    assert again.habits.forced("forced_bos_token_id") == 0
    for lacking in ("language_model.model.shared.weight", "language_model.final_logits_bias"):  # as some files are
        save_file({k: v for k, v in tensors.items() if k != lacking}, source / "model.safetensors")
        assert_same_state(opened(source).official_state(), ours.official_state())
    save_file(
        {k: v for k, v in tensors.items() if k not in {*names, "language_model.model.shared.weight"}},
        source / "model.safetensors",
    )
    with pytest.raises(WeightsError, match="shared"):
        opened(source)


def test_asking(awake, saved):
    """Every task gives what the official chain gives for the same pictures: generate, decode, post-process."""
    theirs, processor, folder = checkpoint(awake, saved)
    theirs.generation_config.update(
        num_beams=2, forced_bos_token_id=0, no_repeat_ngram_size=2, suppress_tokens=list(range(5, 261))
    )
    theirs.save_pretrained(folder)
    ours = load(folder, device="cpu", dtype="float32")
    assert isinstance(ours, Florence2)
    picture = photos()[1]
    region = Boxes.from_xywh([[17.2, 3.72, 85.5, 18.5]], [0], [1.0], ["?"], 171, 37)
    options = Generation(
        max_new_tokens=13, num_beams=2, no_repeat_ngram_size=2, loops=None, stop=(2,), suppress=tuple(range(5, 261))
    )
    for task, means in TASKS.items():
        text = "<loc_100><loc_100><loc_600><loc_600>" if "REGION_TO" in task else "a red mug" if means.asks else ""
        inputs = processor(images=picture, text=task + text, return_tensors="pt")
        with torch.no_grad():
            ids = theirs.generate(**inputs, max_new_tokens=13)
        said = processor.batch_decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)[0]
        want = processor.post_process_generation(said, task=task, image_size=picture.size)
        with_boxes = {"regions": region} if "REGION_TO" in task else {"text": text}
        got = ours.run(picture, task, **with_boxes, options=options)
        assert got.official() == want, task
        assert (got.boxes.scores <= 1).all() and (got.boxes.scores >= 0).all()
    (found,) = ours.detect([picture], options=options)
    assert found.phrases == ours.run(picture, "<OD>", options=options).boxes.phrases
    both = ours.detect(photos()[:3], batch_size=2, options=options)
    assert [(b.width, b.height) for b in both] == [(41, 53), (171, 37), (96, 96)]
    assert both[1].xyxy.tolist() == found.xyxy.tolist()
    assert isinstance(ours.caption(picture, detail=2, options=options), str)
    assert ours.ocr(picture, options=options).task == "<OCR_WITH_REGION>"
    located = ours.locate(picture, ["a mug", "box"], options=options)
    assert located.phrases == ("a mug", "box") and located.width == 171
    assert len(ours.locate(picture, [])) == 0


def test_bad_input(awake, saved):
    _, _, folder = checkpoint(awake, saved)
    ours = load(folder, device="cpu", dtype="float32")
    picture = Picture.from_array(np.zeros((5, 7, 3), np.uint8))
    for wrong, told in [
        (lambda: ours.processor([picture], ["a", "b"]), "1 pictures and 2 texts"),
        (lambda: ours.processor([picture], "<OD>"), "one string"),
        (lambda: ours.locate(picture, ["<image>"]), "stands for a picture"),
        (lambda: ours.locate(picture, "a mug"), "one string"),
        (lambda: ours.locate(picture, ["a mug", " "]), "a phrase is empty"),
        (lambda: ours.run(picture, "<ODD>"), "no task"),
        (lambda: ours.caption(picture, detail=3), "detail is 3"),
        (lambda: ours.detect([picture], batch_size=0), "batch_size is 0"),
    ]:
        with pytest.raises(UsageError, match=told):
            wrong()
    for changes, told in [({"do_center_crop": True, "crop_size": {"height": 9, "width": 9}}, "cuts"),
                          ({"size": {"height": 64, "width": 96}}, "counts 10 tokens")]:  # fmt: skip
        official_processor(**changes).save_pretrained(folder)
        with pytest.raises(ConfigError, match=told):
            load(folder, device="cpu", dtype="float32")
    official_processor().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "image_token_id": 7}))
    with pytest.raises(TokenizerError, match="takes 7 for it"):
        load(folder, device="cpu", dtype="float32")
