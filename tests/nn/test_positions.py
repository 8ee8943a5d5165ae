"""Positions against their formulas, and the properties that make them what they are."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from sightline.errors import ConfigError
from sightline.nn import GridPositions, resample_grid, rotary, rotary_grid, rotate, sine_cosine, sine_cosine_grid


def test_table_at_its_own_grid_is_itself():
    positions = GridPositions((3, 5), 7, prefix=2)
    torch.nn.init.normal_(positions.table)
    assert positions((3, 5)) is positions.table
    assert positions((5, 3)).shape == (17, 7)
    assert torch.equal(positions((5, 3))[:2], positions.table[:2])  # the prefix stands nowhere


@pytest.mark.parametrize(("kernel", "mode"), [("bicubic", "bicubic"), ("bilinear", "bilinear")])
@pytest.mark.parametrize("antialias", [False, True])
def test_resampling_is_that_of_a_picture(kernel, mode, antialias):
    table = torch.randn(15, 7)
    want = F.interpolate(table.T.reshape(1, 7, 3, 5), size=(2, 11), mode=mode, antialias=antialias)
    got = resample_grid(table, (3, 5), (2, 11), kernel + ("-antialias" if antialias else ""))
    assert torch.equal(got, want[0].reshape(7, 22).T)


def test_the_two_bicubics_differ():
    """a = −0.75 against −0.5: whoever takes the wrong one is off by tenths."""
    table = torch.randn(16, 7)
    plain, smooth = (resample_grid(table, (4, 4), (7, 7), k) for k in ("bicubic", "bicubic-antialias"))
    assert (plain - smooth).abs().max() > 0.05


def test_a_constant_table_stays_constant():
    for kernel in ("bicubic", "bicubic-antialias", "bilinear", "bilinear-antialias", "nearest"):
        got = resample_grid(torch.full((15, 2), 3.0), (3, 5), (7, 2), kernel)
        assert torch.allclose(got, torch.full((14, 2), 3.0))


def test_low_precision_tables_keep_their_type():
    assert resample_grid(torch.randn(4, 3).bfloat16(), (2, 2), (3, 3), "bilinear-antialias").dtype == torch.bfloat16


def test_an_empty_grid_is_refused():
    with pytest.raises(ConfigError, match="empty"):
        GridPositions((0, 3), 7)


def test_sine_cosine_by_formula():
    """Vaswani et al., §3.5, with sines first: position 3, width 4, frequencies 1 and 1/100."""
    got = sine_cosine(torch.tensor([3.0]), 4)[0]
    want = [math.sin(3), math.sin(0.03), math.cos(3), math.cos(0.03)]
    assert torch.allclose(got, torch.tensor(want), atol=1e-6)


def test_sine_cosine_grid_has_columns_first():
    """Row 1, column 2 of a 2 × 3 grid is cell 5; the first half of its channels tells the column."""
    cell = sine_cosine_grid((2, 3), 8)[5]
    assert torch.allclose(cell[:4], sine_cosine(torch.tensor([2.0]), 4)[0])
    assert torch.allclose(cell[4:], sine_cosine(torch.tensor([1.0]), 4)[0])


def test_rotary_by_formula():
    """Size 2 has one pair: (1, 0) at position p becomes (cos p, sin p)."""
    turned = rotate(torch.tensor([[[[1.0, 0.0]]]]), rotary(torch.tensor([0.7]), 2))
    assert torch.allclose(turned, torch.tensor([[[[math.cos(0.7), math.sin(0.7)]]]]))


def test_rotation_keeps_length():
    x = torch.randn(2, 3, 5, 12)
    assert torch.allclose(rotate(x, rotary(torch.arange(5.0), 12)).norm(dim=-1), x.norm(dim=-1), atol=1e-5)


def test_rotation_depends_on_distance_only():
    query, key = torch.randn(1, 1, 1, 12), torch.randn(1, 1, 1, 12)

    def score(a: float, b: float) -> torch.Tensor:
        return (rotate(query, rotary(torch.tensor([a]), 12)) * rotate(key, rotary(torch.tensor([b]), 12))).sum()

    assert torch.allclose(score(2.0, 5.0), score(41.0, 44.0), atol=1e-4)
    assert not torch.allclose(score(2.0, 5.0), score(2.0, 6.0), atol=1e-3)


def test_rotary_grid_splits_rows_and_columns():
    """Moving along a row turns only the second half of the frequencies, and the other way round."""
    here, right = (rotary_grid(torch.tensor([1.0]), torch.tensor([c]), 16) for c in (2.0, 5.0))
    rows, columns = here.cosine[0, :4], here.cosine[0, 4:8]
    assert torch.equal(rows, right.cosine[0, :4]) and not torch.equal(columns, right.cosine[0, 4:8])
