"""Picture features take the places of placeholders, in reading order; what does not fit says both numbers and why."""

from __future__ import annotations

import pytest
import torch

from sightline.errors import UsageError
from sightline.models.vlm.fusion import fuse

P = 9  # the placeholder


def vectors(ids):
    """Every token is (id, id, id)."""
    return ids[..., None].expand(-1, -1, 3).float()


def fused(rows, features):
    ids = torch.tensor(rows)
    return fuse(vectors(ids), ids == P, features)


def features(*sizes):
    """Picture p's vector v is (100 p + v) three times, p from 1."""
    return [torch.arange(n)[:, None].expand(n, 3).float() + 100 * (p + 1) for p, n in enumerate(sizes)]


def test_text_before_and_behind_several_pictures_and_none():
    rows = [
        [0, 0, 4, P, P, 5],  # padded on the left
        [P, P, P, P, 6, 0],  # two side by side, padded on the right
        [1, 2, 3, 4, 5, 6],  # none
        [7, P, P, 8, P, P],
    ]
    want = [
        [0, 0, 4, 100, 101, 5],
        [200, 201, 300, 301, 6, 0],
        [1, 2, 3, 4, 5, 6],
        [7, 400, 401, 8, 500, 501],
    ]
    got = fused(rows, torch.stack(features(2, 2, 2, 2, 2)))
    assert got[..., 0].tolist() == want
    assert torch.equal(got[..., 0], got[..., 2])


def test_pictures_of_different_sizes():
    got = fused([[P, 1, P, P, P], [2, 3, P, P, 4]], features(1, 3, 2))
    assert got[..., 1].tolist() == [[100, 1, 200, 201, 202], [2, 3, 300, 301, 4]]


@pytest.mark.parametrize("given", [None, [], torch.zeros(0, 5, 3)])
def test_no_picture_at_all(given):
    assert torch.equal(fused([[1, 2], [3, 4]], given), vectors(torch.tensor([[1, 2], [3, 4]])))


def test_gradients_flow_to_text_and_features_and_types_are_the_texts():
    ids = torch.tensor([[1, P, P, 2]])
    text = vectors(ids).to(torch.bfloat16).requires_grad_()
    given = torch.ones(1, 2, 3, requires_grad=True)
    out = fuse(text, ids == P, given)
    assert out.dtype is torch.bfloat16
    (out * torch.tensor([1.0, 2.0, 3.0, 4.0])[:, None]).sum().backward()
    assert text.grad[0, :, 0].tolist() == [1, 0, 0, 4]
    assert given.grad[0, :, 0].tolist() == [2, 3]
    assert text.detach()[0, 1, 0] == P  # not written into


@pytest.mark.parametrize(
    ("rows", "sizes", "message"),
    [
        (
            [[1, P, P]],
            [],
            r"2 placeholder tokens <image> and 0 pictures give 0 features: give the pictures that it names",
        ),
        ([[1, 2, 3]], [2], r"0 placeholder tokens <image> and 1 picture gives 2 features: put <image> where"),
        ([[P] * 6], [3], r"6 placeholder tokens .* 3 features: it names 2 pictures of 3 and 1 came"),
        ([[P] * 3], [3, 3], r"it names 1 picture of 3 and 2 came"),
        (
            [[P] * 6 + [1]],
            [4, 4],
            r"6 placeholder tokens .* 8 features: they differ by one per picture, which is \[CLS\]",
        ),
        ([[P] * 10], [4, 4], r"one per picture, which is \[CLS\]"),
        ([[P] * 14], [4, 4], r"the processor counts 7 per picture and the model makes 4; compare patch_size"),
        ([[P] * 7], [4, 4], r"the text was cut inside a picture, or holds a <image> of its own"),
        ([[P, P, P], [P, 1, 2]], [2, 2], r"text 0 ends inside a picture \(3 placeholder tokens .* 2 features each\)"),
    ],
)
def test_counts_that_differ_say_why(rows, sizes, message):
    longest = max(map(len, rows))
    with pytest.raises(UsageError, match=message) as error:
        fused([row + [0] * (longest - len(row)) for row in rows], features(*sizes))
    assert "\n" not in str(error.value)


def test_features_of_another_width():
    with pytest.raises(UsageError, match="width 5 and the text's vectors 3"):
        fused([[P, 1]], torch.zeros(1, 1, 5))
