"""DETR equals transformers: outputs, losses, processor, boxes, both ways, both namings of the backbone."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from parity.tiny import assert_equal, assert_same_state, pictures
from sightline.errors import ConfigError
from sightline.models.detection.detr import DETR, VARIANTS, DetrConfig
from sightline.models.detection.losses import SetLoss
from sightline.models.detection.matching import Truth
from sightline.models.detection.processor import DetrProcessor
from sightline.models.detection.transformer import sine_positions
from sightline.models.zoo import load, model_class

RESNET = {
    "embedding_size": 8,
    "hidden_sizes": [12, 20, 28, 44],
    "depths": [1, 2, 1, 2],
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}
TINY = {
    "d_model": 24, "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 3, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 37, "decoder_ffn_dim": 41, "num_queries": 7, "num_labels": 5, "dropout": 0.0,
}  # fmt: skip
OPTIONS = [
    {},
    {"auxiliary_loss": True, "activation_function": "gelu"},
    {"resnet": {"layer_type": "basic"}, "num_queries": 11},
]


def reference(**options):
    resnet = transformers.ResNetConfig(**{**RESNET, **options.pop("resnet", {})})
    config = transformers.DetrConfig(backbone_config=resnet, **{**TINY, **options})
    config._attn_implementation = "eager"  # the default returns no attentions
    return config


def padded(batch, height, width):
    """Pictures of different sizes in one batch: the first fills it, the others do not."""
    pixels = pictures(batch, height, width)
    mask = torch.zeros(batch, height, width, dtype=torch.int64)
    for number in range(batch):
        down, right = height - 19 * number, width - 31 * number
        mask[number, :down, :right] = 1
    return pixels * mask[:, None], mask


def truths(counts, classes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    made = []
    for count in counts:
        labels = torch.randint(0, classes, (count,), generator=generator)
        sides = 0.05 + 0.4 * torch.rand(count, 2, generator=generator)
        made.append(Truth(labels, torch.cat([0.25 + 0.5 * torch.rand(count, 2, generator=generator), sides], dim=1)))
    return made


def labels(made):
    return [{"class_labels": t.class_labels, "boxes": t.boxes} for t in made]


@pytest.mark.parametrize("size", [(96, 128), (131, 67)])
@pytest.mark.parametrize("options", OPTIONS)
def test_padded_batch(size, options, awake, saved):
    theirs = awake(transformers.DetrForObjectDetection(reference(**options)))
    ours = DETR.from_folder(saved(theirs))
    pixels, mask = padded(3, *size)
    with torch.no_grad():
        want = theirs(pixels, mask, output_hidden_states=True, output_attentions=True)
        got = ours(pixels, mask, output_hidden_states=True, output_attentions=True)
    for name in ("logits", "pred_boxes", "last_hidden_state", "encoder_last_hidden_state"):
        assert_equal(getattr(got, name), getattr(want, name))
    for name in ("encoder_hidden_states", "encoder_attentions", "decoder_attentions", "cross_attentions"):
        assert len(getattr(got, name)) == len(getattr(want, name))
        for a, b in zip(getattr(got, name), getattr(want, name), strict=True):
            assert_equal(a, b)
    assert len(got.decoder_hidden_states) == len(want.decoder_hidden_states)
    for a, b in zip(got.decoder_hidden_states[1:], want.decoder_hidden_states[1:], strict=True):  # the first is zero
        assert_equal(a, b)
    with torch.no_grad():  # the fused attention gives the same, and so does no mask where all is picture
        assert_equal(ours(pixels, mask).logits, want.logits)
        assert_equal(ours(pixels).pred_boxes, theirs(pixels).pred_boxes)


def test_one_picture_alone_equals_itself_in_a_padded_batch(awake, saved):
    """Padding hides what it should: cells beyond the picture change nothing but what the convolutions see of zeros."""
    ours = DETR.from_folder(saved(awake(transformers.DetrForObjectDetection(reference()))))
    pixels, mask = pictures(1, 64, 96), torch.ones(1, 64, 96, dtype=torch.int64)
    ours.backbone.forward = lambda x: [x[:, :1, ::32, ::32].repeat(1, 44, 1, 1)]  # no convolution reaches the padding
    wide, wide_mask = torch.zeros(1, 3, 96, 160), torch.zeros(1, 96, 160, dtype=torch.int64)
    wide[:, :, :64, :96], wide_mask[:, :64, :96] = pixels, 1
    with torch.no_grad():
        assert_equal(ours(wide, wide_mask).pred_boxes, ours(pixels, mask).pred_boxes)


def test_both_ways(awake, saved, tmp_path):
    names = {i: f"class {i}" for i in range(5)}
    theirs = awake(transformers.DetrForObjectDetection(reference(id2label=names)))
    folder = saved(theirs, transformers.DetrImageProcessorPil())
    ours = load(folder, dtype="float32")
    assert isinstance(ours, DETR) and isinstance(ours.processor.pictures, DetrProcessor)
    assert ours.config.labels == [f"class {i}" for i in range(5)]
    written = ours.save(tmp_path / "ours")
    back = transformers.DetrForObjectDetection.from_pretrained(written)
    assert_same_state(back.state_dict(), theirs.state_dict())
    assert back.config.id2label == names
    assert model_class(written) is DETR
    pixels = pictures(1, 64, 64)
    with torch.no_grad():
        assert_equal(back.eval()(pixels).logits, theirs(pixels).logits)
    processor = transformers.DetrImageProcessorPil.from_pretrained(written)
    assert dict(processor.size) == {"shortest_edge": 800, "longest_edge": 1333}


def test_names_in_memory_of_transformers_5(awake, saved):
    """A file written straight from its state_dict, without save_pretrained's renaming."""
    theirs = awake(transformers.DetrForObjectDetection(reference()))
    folder = saved(theirs)
    want = load_file(folder / "model.safetensors")
    save_file({k: v.contiguous() for k, v in theirs.state_dict().items()}, folder / "model.safetensors")
    assert set(want) != set(load_file(folder / "model.safetensors"))
    assert_same_state(DETR.from_folder(folder).official_state(), want)


def torchvision_name(name):
    """transformers' name of a backbone tensor → torchvision's, written down a second time."""
    name = name.replace("embedder.embedder.convolution", "conv1").replace("embedder.embedder.normalization", "bn1")
    name = re.sub(
        r"encoder\.stages\.(\d)\.layers\.(\d+)\.layer\.(\d)\.convolution",
        lambda m: f"layer{int(m[1]) + 1}.{m[2]}.conv{int(m[3]) + 1}",
        name,
    )
    name = re.sub(
        r"encoder\.stages\.(\d)\.layers\.(\d+)\.layer\.(\d)\.normalization",
        lambda m: f"layer{int(m[1]) + 1}.{m[2]}.bn{int(m[3]) + 1}",
        name,
    )
    return re.sub(
        r"encoder\.stages\.(\d)\.layers\.(\d+)\.shortcut\.(convolution|normalization)",
        lambda m: f"layer{int(m[1]) + 1}.{m[2]}.downsample.{int(m[3] == 'normalization')}",
        name,
    )


def test_backbone_named_as_timm_does(awake, saved, tmp_path):
    """The main revision of facebook/detr-resnet-50: timm's names, and counters that frozen norms do not have."""
    small = {"depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512], "embedding_size": 64, "layer_type": "basic"}
    theirs = awake(transformers.DetrForObjectDetection(reference(resnet=small)))
    folder = saved(theirs)
    tensors = {torchvision_name(k): v for k, v in load_file(folder / "model.safetensors").items()}
    config = json.loads((folder / "config.json").read_text())
    pixels, mask = padded(2, 96, 64)
    with torch.no_grad():
        want = theirs(pixels, mask).logits
    for record in (
        {"backbone_config": None, "use_timm_backbone": True, "backbone": "resnet18"},
        {"backbone_config": {"model_type": "timm_backbone", "backbone": "resnet18", "out_indices": [1, 2, 3, 4]}},
    ):
        (folder / "config.json").write_text(json.dumps({**config, **record}))
        counter = "model.backbone.conv_encoder.model.layer2.0.downsample.1.num_batches_tracked"
        save_file({**tensors, counter: torch.tensor(7)}, folder / "model.safetensors")
        ours = DETR.from_folder(folder)
        with torch.no_grad():
            assert_equal(ours(pixels, mask).logits, want)
        written = ours.save(tmp_path / "timm")
        assert_same_state(load_file(written / "model.safetensors"), tensors)
        assert json.loads((written / "config.json").read_text()).items() >= record.items()


def test_full_size():
    ours = DETR.shaped(DetrConfig.from_dict({"id2label": {str(i): str(i) for i in range(91)}}))
    assert sum(p.numel() for p in ours.parameters()) == VARIANTS["facebook/detr-resnet-50"]
    with torch.device("meta"):
        config = transformers.DetrConfig(backbone_config=transformers.ResNetConfig(), num_labels=91)
        theirs = transformers.DetrForObjectDetection(config)
    assert sum(p.numel() for p in theirs.parameters()) == VARIANTS["facebook/detr-resnet-50"]


# ---- positions, by hand


def test_sine_positions_by_hand():
    """A 2×3 map whose last column is padding, 4 channels: the row's sine and cosine, then the column's."""
    mask = torch.tensor([[[True, True, False], [True, True, False]]])
    got = sine_positions(mask, 4)[0]
    turn = 2 * np.pi
    rows, columns = [turn / 2, turn], [turn / 2, turn, turn]  # 1 of 2, 2 of 2; the padding stays at the end
    for cell, (row, column) in enumerate((r, c) for r in (0, 1) for c in (0, 1)):
        at = row * 3 + column
        want = [np.sin(rows[row]), np.cos(rows[row]), np.sin(columns[column]), np.cos(columns[column])]
        assert np.allclose(got[at], want, atol=1e-5), cell


# ---- losses


@pytest.mark.parametrize("counts", [(3, 1, 0), (0, 0, 0), (9, 2, 4)])  # none in one, none at all, more than queries
@pytest.mark.parametrize("auxiliary", [False, True])
def test_set_loss(counts, auxiliary, awake, saved):
    theirs = awake(transformers.DetrForObjectDetection(reference(auxiliary_loss=auxiliary)))
    ours = DETR.from_folder(saved(theirs))
    pixels, mask = padded(3, 96, 128)
    made = truths(counts, classes=5)
    with torch.no_grad():
        want = theirs(pixels, mask, labels=labels(made))
        got = SetLoss.from_config(ours.config)(ours(pixels, mask, auxiliary=auxiliary), made)
    assert set(got.parts) == set(want.loss_dict)
    for name, value in want.loss_dict.items():
        assert float(got.parts[name]) == pytest.approx(float(value), rel=1e-5, abs=1e-6), name
    assert float(got.total) == pytest.approx(float(want.loss), rel=1e-5)


def test_set_loss_gradients(awake, saved):
    theirs = awake(transformers.DetrForObjectDetection(reference(eos_coefficient=0.3, giou_loss_coefficient=3)))
    ours = DETR.from_folder(saved(theirs))
    pixels, mask = padded(2, 96, 128)
    made = truths((4, 0), classes=5)
    theirs(pixels, mask, labels=labels(made)).loss.backward()
    SetLoss.from_config(ours.config)(ours(pixels, mask), made).total.backward()
    assert_equal(ours.queries.grad, theirs.model.query_position_embeddings.weight.grad, 1e-4)
    assert_equal(ours.projection.weight.grad, theirs.model.input_projection.weight.grad, 1e-4)


def test_auxiliary_guesses_leave_the_forward_alone(awake, saved):
    """The paper's auxiliary losses look at normed copies; asking for them changes nothing."""
    ours = DETR.from_folder(saved(awake(transformers.DetrForObjectDetection(reference()))))
    pixels = pictures(1, 64, 96)
    with torch.no_grad():
        plain, more = ours(pixels), ours(pixels, auxiliary=True, output_hidden_states=True)
        assert torch.equal(plain.logits, more.logits)
        assert plain.auxiliary_outputs is None and len(more.auxiliary_outputs) == 2  # three layers
        first = ours.norm(more.decoder_hidden_states[1])
        assert_equal(more.auxiliary_outputs[0].logits, ours.classifier(first))


def test_norms_that_learn_are_saved_frozen(awake, tmp_path):
    """A backbone trained from scratch measures its batches; its file is that of a frozen one, in both libraries."""
    record = {**TINY, "backbone_config": {"model_type": "resnet", **RESNET}}
    del record["num_labels"]  # two classes, the default
    ours = awake(DETR(DetrConfig.from_dict(record), norm=nn.BatchNorm2d))
    pixels, mask = padded(2, 96, 128)
    before = ours.backbone.stem.norm.running_mean.clone()
    loss = SetLoss()(ours.train()(pixels, mask, auxiliary=True), truths((2, 1), classes=2)).total
    loss.backward()
    assert ours.backbone.stem.conv.weight.grad.abs().max() > 0
    assert not torch.equal(before, ours.backbone.stem.norm.running_mean)
    folder = ours.eval().save(tmp_path / "learned")
    frozen, theirs = DETR.from_folder(folder), transformers.DetrForObjectDetection.from_pretrained(folder).eval()
    with torch.no_grad():
        want = ours(pixels, mask).pred_boxes
        assert_equal(frozen(pixels, mask).pred_boxes, want)
        assert_equal(theirs(pixels, mask).pred_boxes, want)


def test_bfloat16_stays_close(awake, saved):
    folder = saved(awake(transformers.DetrForObjectDetection(reference())))
    pixels, mask = padded(2, 96, 128)
    with torch.no_grad():
        want = DETR.from_folder(folder)(pixels, mask).pred_boxes
        got = DETR.from_folder(folder, dtype=torch.bfloat16)(pixels, mask).pred_boxes
    assert got.dtype == torch.bfloat16
    assert (got.float() - want).abs().max() < 0.02


@pytest.mark.parametrize(
    "wrong",
    [
        {"position_embedding_type": "learned"},
        {"d_model": 30},
        {"encoder_attention_heads": 5},
        {"backbone_config": {"model_type": "swin"}},
        {"backbone_config": None, "backbone": "mobilenet"},
    ],
)
def test_configs_that_cannot_be_read(wrong):
    with pytest.raises(ConfigError):
        DETR.shaped(DetrConfig.from_dict({**TINY, "backbone_config": {"model_type": "resnet", **RESNET}, **wrong}))
