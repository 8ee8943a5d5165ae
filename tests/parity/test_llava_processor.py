"""LLaVA's processor equals transformers': ids, masks, pixels, conversations; and says what is wrong with bad input."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from parity.test_llava import IMAGE, opened, reference
from parity.tiny import assert_equal
from sightline.errors import ConfigError, PictureError, TokenizerError, UsageError, WeightsError
from sightline.media import Picture
from sightline.models.vlm import square
from sightline.models.vlm.llava import Llava, LlavaConfig
from sightline.models.vlm.square import llava_pictures, padded
from sightline.models.vlm.vicuna import VICUNA
from sightline.models.zoo import load

WORDS = [
    "<pad>",
    "<s>",
    "</s>",
    "USER:",
    "ASSISTANT:",
    "what",
    "is",
    "this",
    "two",
    "cups",
    "here",
    "?",
    "and",
    "<unk>",
]
TEMPLATE = (
    "{{ bos_token if start else '' }}{% for m in messages %}{{ m['role'].upper() }}: "
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}<image> {% else %}{{ c['text'] }} {% endif %}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def word_tokenizer(image_id=IMAGE, template=TEMPLATE):
    backend = Tokenizer(
        models.WordLevel({**{w: i for i, w in enumerate(WORDS)}, "<image>": image_id}, unk_token="<unk>")
    )
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(
        [AddedToken(w, special=True, normalized=False) for w in ("<pad>", "<s>", "</s>", "<image>")]
    )
    from tokenizers.processors import TemplateProcessing

    backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
        padding_side="left", chat_template=template,
    )  # fmt: skip


def looks(kind):
    numbers = {"size": {"shortest_edge": 35}, "crop_size": {"height": 35, "width": 35}}
    if kind == "clip":
        return transformers.CLIPImageProcessorPil(**numbers)
    if kind == "siglip":
        return transformers.SiglipImageProcessorPil(size={"height": 35, "width": 35})
    return transformers.LlavaImageProcessorPil(**numbers, do_pad=kind == "padded")


def processor(kind, **options):
    chosen = {"patch_size": 7, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    if kind == "siglip":
        chosen |= {"vision_feature_select_strategy": "full", "num_additional_image_tokens": 0}
    return transformers.LlavaProcessor(looks(kind), word_tokenizer(), chat_template=TEMPLATE, **{**chosen, **options})


def photos(count=4):
    noise = np.random.default_rng(3)
    sizes = [(53, 41), (37, 71), (35, 35), (97, 40)][:count]
    return [Image.fromarray(noise.integers(0, 256, (h, w, 3), dtype=np.uint8)) for h, w in sizes]


PROMPTS = [
    "USER: <image> what is this ? ASSISTANT:",
    "USER: two cups <image> and <image> ? ASSISTANT:",
    "USER: what ? ASSISTANT:",
    "<image>",
]


@pytest.mark.parametrize("kind", ["clip", "padded", "llava", "siglip"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_processor(kind, side, awake, saved, tmp_path):
    theirs = processor(kind)
    theirs.tokenizer.padding_side = side
    ours = load(saved(reference("tiny" if kind == "siglip" else "1.5", awake), theirs), device="cpu", dtype="float32")
    want = theirs(images=photos(), text=PROMPTS, padding=True, return_tensors="pt")
    got = ours.processor(photos(), PROMPTS, side=side)
    lists = [[p] if i != 1 else p for i, p in enumerate([photos()[0], photos()[1:3], None, photos()[3]])]
    nested = ours.processor([p if p != [None] else [] for p in lists], PROMPTS, side=side)
    for name in ("input_ids", "attention_mask", "pixel_values"):
        assert torch.equal(got[name], want[name])
        assert torch.equal(nested[name], got[name])
    with torch.no_grad():
        ours(**got)
    back = transformers.LlavaProcessor.from_pretrained(ours.save(tmp_path / "ours"), backend="pil")
    back.tokenizer.padding_side = side
    again = back(images=photos(), text=PROMPTS, padding=True, return_tensors="pt")
    own = load(tmp_path / "ours", device="cpu", dtype="float32").processor(photos(), PROMPTS, side=side)
    for name in ("input_ids", "attention_mask", "pixel_values"):
        assert torch.equal(again[name], want[name])
        assert torch.equal(own[name], want[name])
    assert back.chat_template == TEMPLATE


@pytest.mark.parametrize("start", [True, False])  # the start token: in the template, or from the tokenizer
def test_conversations(start, awake, saved):
    theirs = processor("clip")
    ours = load(saved(reference("1.5", awake), theirs), device="cpu", dtype="float32")
    a, b, c = photos(3)

    def said(first, second):
        return [
            [{"role": "user", "content": [first(a), {"type": "text", "text": "what is this ?"}]}],
            [
                {"role": "user", "content": [{"type": "text", "text": "here"}, first(b), second(c)]},
                {"role": "assistant", "content": [{"type": "text", "text": "two cups"}]},
                {"role": "user", "content": [{"type": "text", "text": "and ?"}]},
            ],
        ]

    def inside(picture):
        return {"type": "image", "image": picture}

    want = theirs.apply_chat_template(
        said(inside, inside), tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True,
        processor_kwargs={"padding": True}, start=start,
    )  # fmt: skip
    got = ours.processor.chat(said(inside, inside), start=start)
    beside = ours.processor.chat(said(lambda _: {"type": "image"}, lambda _: {"type": "image"}), [a, b, c], start=start)
    for name in ("input_ids", "attention_mask", "pixel_values"):
        assert torch.equal(got[name], want[name])
        assert torch.equal(beside[name], want[name])
    assert (got["input_ids"] == 1).sum() == 2


def test_what_the_files_leave_out_the_model_says(awake, saved):
    """A folder without processor_config.json, as LLaVA-1.5's was: patch size, strategy and [CLS] are the model's."""
    folder = saved(reference("1.5", awake), processor("clip"))
    record = json.loads((folder / "processor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(record["image_processor"]))
    (folder / "processor_config.json").unlink()
    ours = load(folder, device="cpu", dtype="float32")
    assert (ours.processor(photos(1), ["<image>"])["input_ids"] == IMAGE).sum() == 25
    ours.processor = None
    full = ours.config.replace(vision_feature_select_strategy="full")
    assert Llava(full).tokens_per_picture(35, 35) == 26


def test_bad_input(awake, saved):
    folder = saved(reference("1.5", awake), processor("clip"))
    ours = load(folder, device="cpu", dtype="float32")
    see, one = ours.processor, photos(1)
    ask = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is <image> ?"}]}
    with pytest.raises(UsageError, match=r'user holds "<image>", which stands for a picture; take it out'):
        see.chat([[ask]], one)
    with pytest.raises(UsageError, match=r"name 2 pictures with <image> and 1 were given"):
        see(one, ["<image> <image>"])
    with pytest.raises(UsageError, match=r"name 1 pictures with <image> and 3 were given"):
        see(photos(3), ["<image>"])
    with pytest.raises(UsageError, match=r"name 1 pictures with <image> and 0 were given"):
        see(None, ["<image>"])
    with pytest.raises(UsageError, match=r"text 1 names 0 pictures with <image> and 2 came with it"):
        see([one, photos(2)], ["<image>", "what ?"])
    with pytest.raises(UsageError, match=r"2 texts and pictures for 1"):
        see([one], ["<image>", "what ?"])
    with pytest.raises(TokenizerError, match=r"a text of 227 tokens is longer than the 211 this model reads"):
        ours(**see(photos(1) * 9, ["<image>" * 9 + " what"]))
    with pytest.raises(UsageError, match=r"not both"):
        inputs = see(one, ["<image>"])
        ours(**inputs, image_features=ours.image_features(inputs["pixel_values"]))
    for content in (None, 7, ["what ?"]):
        with pytest.raises(UsageError, match=r"neither a text nor a list of items"):
            see.chat([[{"role": "user", "content": content}]])
    with pytest.raises(UsageError, match=r"in the messages and beside them"):
        see.chat([[{"role": "user", "content": [{"type": "image", "image": one[0]}]}]], one)
    with pytest.raises(UsageError, match=r"texts is one string"):
        see(one, "<image>")
    see.template = None
    with pytest.raises(ConfigError, match=r"brings no chat template"):
        see.chat([[{"role": "user", "content": "what ?"}]])


def test_without_a_template_a_llava_on_a_llama_speaks_vicuna(awake, saved, tmp_path):
    """As the first folders on the hub had none; it is named in the manifest, and saved with the model."""
    for name, built_in in (("1.5", "vicuna_v1"), ("tiny", None)):
        folder = saved(reference(name, awake), processor("clip" if built_in else "siglip"))
        (folder / "chat_template.jinja").unlink()
        ours = load(folder, device="cpu", dtype="float32")
        ask = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is this ?"}]}]
        if built_in is None:  # Phi: nobody knows
            with pytest.raises(ConfigError, match=r"brings no chat template; add its chat_template.jinja"):
                ours.processor.chat([ask], photos(1))
            continue
        assert ours.processor.render(ask) == f"{VICUNA}USER: <image>\nwhat is this ? ASSISTANT:"
        assert ours.processor.describe()["built_in_template"] == built_in
        again = load(ours.save(tmp_path / "ours"), device="cpu").processor
        assert again.template.source == ours.processor.template.source
        assert "built_in_template" not in again.describe()


def test_many_questions_on_one_picture(awake, saved):
    """Its features are computed once; every question gets the logits that it gets alone."""
    ours = load(saved(reference("1.5", awake), processor("clip")), device="cpu", dtype="float32")
    see, one = ours.processor, photos(1)
    texts = ["<image> what is this ?", "two cups <image>", "and <image> ?"]
    with torch.no_grad():
        features = ours.image_features(see(one)["pixel_values"])
        together = see(one * 3, texts)
        together.pop("pixel_values")
        got = ours(**together, image_features=features.expand(3, -1, -1), last_only=True).logits
        for row, text in enumerate(texts):
            assert_equal(got[row], ours(**see(one, [text])).logits[0, -1:])


def test_squares_are_prepared_once_and_bounded(monkeypatch):
    look = llava_pictures(
        {"image_processor_type": "LlavaImageProcessorFast", "do_pad": True, "size": 35, "crop_size": 35}
    )
    picture = Picture.from_array(np.asarray(photos(1)[0]), "a photo")
    ready = look.prepare(picture)
    assert ready.pixels.shape == (35, 35, 3) and look.prepare(ready) is ready
    assert torch.equal(look([ready])["pixel_values"], look([picture])["pixel_values"])
    with pytest.raises(PictureError, match="prepared for another model"):
        look.prepare(look.inner.prepare(picture))
    assert padded(np.zeros((1, 4, 3), np.uint8), [7, 8, 9])[:, 0].tolist() == [[7, 8, 9], [0] * 3, [7, 8, 9], [7, 8, 9]]
    monkeypatch.setattr(square, "LONGEST", 53)
    long = look([np.full((3, 6000, 3), 200, np.uint8)])["pixel_values"]  # 1×53 in a square of 53, 35 px in the end
    assert long.shape == (1, 3, 35, 35)
    assert long[0, 0, 17].mean() > long[0, 0, 2].mean() + 0.1


def test_bad_folders(awake, saved):
    theirs = reference("1.5", awake)
    other = saved(theirs, transformers.LlavaProcessor(looks("clip"), word_tokenizer(image_id=60), patch_size=7))
    with pytest.raises(TokenizerError, match=r'"<image>" as token 60, and config.json says image_token_index 59'):
        load(other, device="cpu")
    lacking = saved(theirs, processor("clip"))
    data = json.loads((lacking / "tokenizer.json").read_text())
    del data["model"]["vocab"]["<image>"]
    data["added_tokens"] = [t for t in data["added_tokens"] if t["content"] != "<image>"]
    (lacking / "tokenizer.json").write_text(json.dumps(data))
    config = json.loads((lacking / "tokenizer_config.json").read_text())
    config.pop("added_tokens_decoder", None)
    (lacking / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(TokenizerError, match=r"<image>"):
        load(lacking, device="cpu")
    for change, message in (
        ({"vision_feature_layer": 4}, "a tower of 3 layers has the layers -4 to 3"),
        ({"vision_feature_layer": []}, "at least one layer"),
        ({"vision_feature_select_strategy": "cls"}, "'cls' for 1 layers"),
        (
            {"vision_config": {"model_type": "pixtral"}},
            'model_type "pixtral", which cannot be a part here; known are clip',
        ),
        ({"text_config": {"model_type": "bert"}}, 'model_type "bert"'),
        ({"text_config": "vicuna"}, "expected an object|expects"),
    ):
        record = json.loads((other / "config.json").read_text())
        with pytest.raises(ConfigError, match=message):
            LlavaConfig.from_dict({**record, **change})
    tensors = load_file(other / "model.safetensors")
    del tensors["multi_modal_projector.linear_2.bias"]
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"lacks 1 that Llava needs \(multi_modal_projector.linear_2.bias\)"):
        opened(other)
