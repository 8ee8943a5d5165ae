"""ResNet equals transformers, both ways, and the names of torchvision lead to the same network."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional as F

from parity.tiny import assert_equal, assert_same_state, pictures
from sightline.errors import ConfigError
from sightline.models.vision.resnet import (
    SIZES,
    VARIANTS,
    FrozenBatchNorm,
    ResNet,
    ResNetClassifier,
    ResNetConfig,
    ResNetTrunk,
)
from sightline.models.zoo import load, model_class

TINY = {"embedding_size": 7, "hidden_sizes": [12, 20, 28, 44], "depths": [1, 2, 3, 1]}
OPTIONS = [
    {},
    {"layer_type": "basic"},
    {"downsample_in_bottleneck": True, "hidden_act": "gelu"},
    {"downsample_in_first_stage": True, "layer_type": "basic", "depths": [2, 1, 1, 2]},
    {"hidden_sizes": [8, 16, 24], "depths": [2, 1, 1]},  # three stages
]


@pytest.mark.parametrize("size", [(64, 64), (97, 41), (33, 53)])  # whole, tall and off-grid, wide and off-grid
@pytest.mark.parametrize("options", OPTIONS)
def test_encoder(size, options, awake, saved):
    theirs = awake(transformers.ResNetModel(transformers.ResNetConfig(**{**TINY, **options})))
    ours = ResNet.from_folder(saved(theirs))
    pixels = pictures(3, *size)
    with torch.no_grad():
        want, got = theirs(pixels, output_hidden_states=True), ours(pixels, output_hidden_states=True)
    assert_equal(got.last_hidden_state, want.last_hidden_state)
    assert_equal(got.pooler_output, want.pooler_output)
    assert len(got.hidden_states) == len(want.hidden_states)
    for a, b in zip(got.hidden_states, want.hidden_states, strict=True):
        assert_equal(a, b)


@pytest.mark.parametrize("options", OPTIONS[:2])
def test_classifier_both_ways(options, awake, saved, tmp_path):
    labels = {i: f"class {i}" for i in range(11)}
    config = transformers.ResNetConfig(**{**TINY, **options}, id2label=labels)
    theirs = awake(transformers.ResNetForImageClassification(config))
    folder = saved(theirs)
    ours = load(folder, dtype="float32")
    assert isinstance(ours, ResNetClassifier)
    assert ours.config.labels == [f"class {i}" for i in range(11)]
    pixels = pictures(2, 67, 45)
    with torch.no_grad():
        assert_equal(ours(pixels).logits, theirs(pixels).logits)
    back = transformers.ResNetForImageClassification.from_pretrained(ours.save(tmp_path / "ours"))
    assert_same_state(back.state_dict(), theirs.state_dict())
    assert back.config.id2label == config.id2label
    assert model_class(saved(transformers.ResNetModel(transformers.ResNetConfig(**TINY)))) is ResNet


@pytest.mark.parametrize("name", SIZES)
def test_published_sizes(name):
    """Parameters of the official checkpoints, and the official names of every tensor."""
    labels = {str(i): str(i) for i in range(1000)}
    ours = ResNetClassifier.shaped(ResNetConfig.from_dict({**SIZES[name], "id2label": labels}))
    number = name.removeprefix("resnet")
    assert sum(p.numel() for p in ours.parameters()) == VARIANTS[f"microsoft/resnet-{number}"]
    with torch.device("meta"):
        config = transformers.ResNetConfig(**SIZES[name], num_labels=1000)
        theirs = transformers.ResNetForImageClassification(config)
    assert set(ours.official_state()) == set(theirs.state_dict())


def test_training_statistics_follow_the_batch(awake, saved):
    """In training mode the norms measure the batch and remember it, as theirs do."""
    theirs = awake(transformers.ResNetModel(transformers.ResNetConfig(**TINY)))
    ours = ResNet.from_folder(saved(theirs))
    pixels = pictures(5, 64, 64)
    with torch.no_grad():
        assert_equal(ours.train()(pixels).last_hidden_state, theirs.train()(pixels).last_hidden_state, 1e-4)
    assert_equal(ours.trunk.stem.norm.running_mean, theirs.embedder.embedder.normalization.running_mean)


def test_frozen_norm_is_a_norm_in_eval_mode(awake):
    norm = awake(nn.BatchNorm2d(5))
    frozen = FrozenBatchNorm(5).train()
    frozen.load_state_dict({k: v for k, v in norm.state_dict().items() if k != "num_batches_tracked"})
    x = pictures(2, 3, 7).repeat(1, 2, 1, 1)[:, :5]
    assert_equal(frozen(x), norm(x).detach())
    assert not list(frozen.parameters())
    assert torch.equal(frozen.running_mean, norm.running_mean)


def test_dilated_last_stage_by_hand(awake):
    """DC5: /16 instead of /32, and the second block's 3×3 skips every other place."""
    config = ResNetConfig(embedding_size=7, hidden_sizes=(8, 12, 16, 20), depths=(1, 1, 1, 2))
    trunk = awake(ResNetTrunk(config, FrozenBatchNorm, dilated=True))
    with torch.no_grad():
        maps = trunk(pictures(1, 96, 64))
        assert [tuple(m.shape[2:]) for m in maps] == [(24, 16), (24, 16), (12, 8), (6, 4), (6, 4)]
        before = trunk.stages[3][0](maps[3])
        one, two, three = trunk.stages[3][1].convs
        y = F.relu(one(before))
        y = F.relu(two.norm(F.conv2d(y, two.conv.weight, padding=2, dilation=2)))
        assert_equal(maps[4], F.relu(three(y) + before))


def test_bad_configs_say_what_is_wrong():
    with pytest.raises(ConfigError, match="layer_type"):
        ResNetConfig.from_dict({"layer_type": "wide"})
    with pytest.raises(ConfigError, match="stages"):
        ResNetConfig.from_dict({"depths": [1, 2]})
