"""sightline inspect bridges: one picture, one tower, a row per bridge."""

from __future__ import annotations

import json

import pytest

import sightline
from sightline.app.cli import main
from sightline.errors import ConfigError, UsageError
from sightline.models.bridges import KINDS, BridgeConfig

SMALL = {"hidden": 12, "num_layers": 1, "heads": 2, "head_size": 6, "kv_heads": 1, "intermediate": 16, "queries": 5}


def test_a_row_for_every_kind():
    """The built-in tower: 128 px in patches of 16 are 8 × 8 = 64 tokens of 192."""
    kinds = [BridgeConfig(kind=kind, **SMALL) for kind in KINDS]
    done = sightline.inspect_bridges(kinds=kinds, text_hidden=10, runs=2)
    assert (done.grid, done.vision_hidden, done.picture) == ((8, 8), 192, "tabletop scene 0")
    rows = {row.kind: row for row in done.bridges}
    assert set(rows) == set(KINDS)
    assert [rows[k].tokens_out for k in ("linear", "mlp2x_gelu", "pixel_shuffle", "qformer")] == [64, 64, 16, 5]
    assert rows["linear"].parameters == 192 * 10 + 10
    assert all(row.tokens_in == 64 and row.milliseconds > 0 and row.reason is None for row in done.bridges)


def test_a_bridge_that_does_not_fit_is_a_row_with_a_reason():
    done = sightline.inspect_bridges(
        kinds=["linear", BridgeConfig(kind="pixel_shuffle", scale_factor=3)], text_hidden=10, runs=2
    )
    fits, not_ = done.bridges
    assert fits.reason is None and not_.parameters is None
    assert "3 divides and was given 8×8" in not_.reason


def test_what_is_refused():
    with pytest.raises(ConfigError, match="unknown"):
        sightline.inspect_bridges(kinds=["linear", "glue"])
    with pytest.raises(UsageError, match="at least 2"):
        sightline.inspect_bridges(runs=1)
    with pytest.raises(UsageError, match="width 0"):
        sightline.inspect_bridges(text_hidden=0)


def test_the_command(monkeypatch, capsys):
    words = ["inspect", "bridges", "-k", "linear", "-k", "pixel_shuffle_mlp", "--text-hidden", "10", "--runs", "2"]
    monkeypatch.setattr("sys.argv", ["sightline", *words, "--json"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    found = json.loads(capsys.readouterr().out)
    assert [(b["kind"], b["tokens_in"], b["tokens_out"]) for b in found["bridges"]] == [
        ("linear", 64, 64),
        ("pixel_shuffle_mlp", 64, 16),
    ]
    monkeypatch.setattr("sys.argv", ["sightline", *words])
    with pytest.raises(SystemExit):
        main()
    shown = capsys.readouterr().out
    assert "64 → 16" in shown and "8 × 8 patches of width 192" in shown


def test_all_of_them_and_the_gated_block():
    """At their published sizes, to a narrow language model: the gated block comes last and adds no token."""
    done = sightline.inspect_bridges(text_hidden=64, runs=2)
    assert [row.kind for row in done.bridges] == [*KINDS, "gated_cross_attention"]
    assert done.bridges[-1].tokens_out == 0
    assert [row.tokens_out for row in done.bridges[:-1]] == [64, 64, 16, 16, 32, 64, 64, 64, 256]
