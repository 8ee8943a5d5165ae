"""SigLIP 2 (NaFlex) equals transformers, both ways; packed pictures equal single ones."""

from __future__ import annotations

import pytest
import torch
import transformers

from parity.tiny import SIGLIP_TEXT, SIGLIP_VISION, assert_equal, assert_same_state, captions
from sightline.errors import ConfigError, UsageError
from sightline.models.contrastive.siglip2 import SigLIP2
from sightline.models.vision.siglip2_vision import Rows, SigLIP2Vision, SigLIP2VisionConfig

VISION = {**{k: v for k, v in SIGLIP_VISION.items() if k != "image_size"}, "num_patches": 25}
SHAPES = torch.tensor([[2, 8], [3, 4], [5, 5], [1, 3], [7, 3]])  # rows, columns: 16, 12, 25, 3 and 21 patches


def reference(**options):
    config = transformers.Siglip2Config(text_config=SIGLIP_TEXT, vision_config={**VISION, **options})
    config._attn_implementation = "eager"
    return transformers.Siglip2Model(config)


def naflex(shapes=SHAPES, length=26):
    pixels = torch.randn(len(shapes), length, 7 * 7 * 3, generator=torch.Generator().manual_seed(2))
    mask = (torch.arange(length) < shapes.prod(1)[:, None]).int()
    return {"pixel_values": pixels, "pixel_attention_mask": mask, "spatial_shapes": shapes}


@pytest.mark.parametrize("options", [{}, {"hidden_act": "gelu", "layer_norm_eps": 1e-3}])
def test_everything_it_returns(options, awake, saved):
    theirs = awake(reference(**options))
    ours = SigLIP2.from_folder(saved(theirs))
    ids, mask = captions(4, 13, end=59)
    inputs = {**naflex(), "input_ids": ids, "attention_mask": mask}
    with torch.no_grad():
        want = theirs(**inputs, output_hidden_states=True, output_attentions=True)
        got = ours(**inputs, output_hidden_states=True, output_attentions=True)
    for name in ("logits_per_image", "image_embeds", "text_embeds"):
        assert_equal(getattr(got, name), getattr(want, name))
    a, b = got.vision_model_output, want.vision_model_output
    assert_equal(a.last_hidden_state, b.last_hidden_state)  # padding included: it takes the official filling
    for x, y in zip([*a.hidden_states, *a.attentions], [*b.hidden_states, *b.attentions], strict=True):
        assert_equal(x, y)


def test_one_by_one_is_the_batch(awake, saved):
    ours = SigLIP2.from_folder(saved(awake(reference())))
    whole = naflex()
    with torch.no_grad():
        together = ours.image_features(**whole)
        for i, count in enumerate(SHAPES.prod(1).tolist()):
            single = {k: v[i : i + 1] for k, v in whole.items()}
            single = {k: v[:, :count] if k != "spatial_shapes" else v for k, v in single.items()}
            assert_equal(ours.image_features(**single), together[i : i + 1])


@pytest.mark.parametrize("budget", [25, 30, 41, 1000])
def test_packed_is_one_by_one(budget, awake, saved):
    ours = SigLIP2.from_folder(saved(awake(reference())))
    inputs = naflex()
    with torch.no_grad():
        plain, packed = ours.vision(**inputs), ours.vision(**inputs, pack=budget)
    assert_equal(packed.pooler_output, plain.pooler_output)
    real = inputs["pixel_attention_mask"].bool()
    assert_equal(packed.last_hidden_state[real], plain.last_hidden_state[real])


def test_first_fit_by_hand():
    """Largest first into rows of 30: 25 | 21 | 16 + 12 | and 3 fits behind 25."""
    rows = Rows.fitted([16, 12, 25, 3, 21], budget=30)
    assert rows.starts == ((2, 0), (2, 16), (0, 0), (0, 25), (1, 0))
    assert (rows.count, rows.length) == (3, 28)
    assert rows.segments[0].tolist() == [3] * 25 + [4] * 3
    assert rows.segments[1].tolist() == [5] * 21 + [0] * 7


def test_packing_gives_no_intermediate_values(awake, saved):
    ours = SigLIP2.from_folder(saved(awake(reference())))
    with pytest.raises(UsageError, match="pack"):
        ours.vision(**naflex(), pack=30, output_attentions=True)


def test_saved_by_us_loads_there(awake, saved, tmp_path):
    theirs = awake(reference())
    back = transformers.Siglip2Model.from_pretrained(SigLIP2.from_folder(saved(theirs)).save(tmp_path / "ours"))
    assert_same_state(back.state_dict(), theirs.state_dict())


def test_vision_tower_alone(awake, saved, tmp_path):
    theirs = awake(transformers.Siglip2VisionModel(transformers.Siglip2VisionConfig(**VISION, vision_use_head=False)))
    ours = SigLIP2Vision.from_folder(saved(theirs))
    with torch.no_grad():
        assert_equal(ours(**naflex()).last_hidden_state, theirs(**naflex()).last_hidden_state)
    back = transformers.Siglip2VisionModel.from_pretrained(ours.save(tmp_path / "ours"))
    assert_same_state(back.state_dict(), theirs.state_dict())


def test_a_table_that_is_no_square_is_refused():
    with pytest.raises(ConfigError, match="square"):
        SigLIP2Vision(SigLIP2VisionConfig(num_patches=24))
