"""Action tokens: hand-checked numbers, OpenVLA's own arithmetic as oracle, error bounds by properties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sightline.errors import DataError, GeometryError
from sightline.pipelines.actions import (
    Grasp,
    MoveTo,
    QuantileTokens,
    UniformBins,
    displacement,
    parse_rt2,
    rt2_string,
)

SEVEN = UniformBins(np.full(7, -1.0), np.full(7, 1.0))
limits = st.tuples(st.floats(-1e3, 1e3), st.floats(1e-3, 1e3))


def test_rt2_by_hand() -> None:
    # bin = floor((x + 1) / 2 · 256), at most 255
    text = rt2_string([-1, -0.5, 0, 0.5, 1, 7, -7], SEVEN, terminate=True)
    assert text == "1 0 64 128 192 255 255 0"
    action, terminate = parse_rt2(text, SEVEN)
    assert terminate and action[2] == pytest.approx(1 / 256) and action[0] == pytest.approx(-255 / 256)


@settings(max_examples=100, deadline=None)
@given(limits, st.floats(0, 1))
def test_half_a_bin_is_the_most_that_is_lost(limit: tuple[float, float], part: float) -> None:
    low, high = limit[0], limit[0] + limit[1]
    x = np.clip([low + part * (high - low)], low, high)
    slack = 1e-9 * (abs(low) + high - low)
    bins = UniformBins(np.array([low]), np.array([high]))
    assert abs(bins.decode(bins.encode(x)) - x)[0] <= bins.error_bound[0] + slack
    assert bins.error_bound[0] == pytest.approx((high - low) / 512)
    vla = QuantileTokens(np.array([low]), np.array([high]))
    assert abs(vla.decode(vla.encode(x)) - x)[0] <= vla.error_bound[0] + slack
    assert vla.error_bound[0] == pytest.approx((high - low) / 510)


def test_openvla_as_its_code_computes_it() -> None:
    tokens = QuantileTokens(np.full(1, -1.0), np.full(1, 1.0), vocab_size=32_000)
    edges = np.linspace(-1, 1, 256)
    x = np.concatenate([np.linspace(-1.2, 1.2, 1999), edges])[:, None]
    digit = np.digitize(np.clip(x, -1, 1), edges)
    np.testing.assert_array_equal(tokens.encode(x), 32_000 - digit)
    centres = (edges[:-1] + edges[1:]) / 2
    np.testing.assert_allclose(tokens.decode(32_000 - digit), centres[np.clip(digit - 1, 0, 254)])
    assert tokens.encode([-1.0])[0] == 31_999 and tokens.encode([1.0])[0] == 31_744
    masked = QuantileTokens(np.array([0.0, 5]), np.array([2.0, 5]), np.array([True, False]))
    np.testing.assert_allclose(masked.decode(masked.encode([1.0, 1.0])), [1, 254 / 255], atol=0.005)


@pytest.mark.parametrize(
    "text", ["", "0 1 2 3", "2 0 0 0 0 0 0 0", "0 256 0 0 0 0 0 0", "0 -1 0 0 0 0 0 0", "0 ² " * 4, "9 " * 500_000]
)
def test_text_that_is_no_action(text: str) -> None:
    with pytest.raises(DataError):
        parse_rt2(text, SEVEN)


def test_numbers_that_are_no_action() -> None:
    with pytest.raises(DataError, match="finite"):
        SEVEN.encode([np.nan] * 7)
    with pytest.raises(DataError, match="integer"):
        SEVEN.decode([0.5] * 7)
    with pytest.raises(DataError, match="limit above"):
        UniformBins(np.array([1.0]), np.array([1.0]))
    with pytest.raises(DataError, match="no action"):
        QuantileTokens(np.zeros(1), np.ones(1)).decode([5])
    with pytest.raises(GeometryError):
        MoveTo(0, float("nan"), 0)
    with pytest.raises(GeometryError):
        Grasp(-1)


def test_a_step_towards_a_point() -> None:
    calls = [MoveTo(0.3, 0, 0.4), Grasp(0.04)]
    np.testing.assert_allclose(displacement(calls, (0, 0, 0)), [0.03, 0, 0.04, 0, 0, 0, 1])  # 5 cm of 50
    np.testing.assert_allclose(displacement(calls, (0.3, 0, 0.38)), [0, 0, 0.02, 0, 0, 0, 0], atol=1e-12)
    assert [str(c) for c in calls] == ["move_to(0.300, 0.000, 0.400)", "grasp(0.040)"]
    with pytest.raises(DataError, match="no move_to"):
        displacement([Grasp(0.1)], (0, 0, 0))
