"""The benches of models that write, on tiny sizes: every contender runs, and what should be equal is equal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from sightline.app.bench import decode
from sightline.app.bench.decode_openvino import opened, openvino_int8
from sightline.app.bench.prefill import bench_prefill
from sightline.training import bench_llava
from sightline.training.bench_llava import Size, same_losses

TINY: dict[str, Any] = {
    "vocab_size": 101, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2,
    "intermediate_size": 80,
}  # fmt: skip
SMALL = Size(
    width=32, layers=2, heads=4, intermediate=48, vocabulary=211, vision_width=28, vision_layers=2, side=28, patch=7
)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(decode.SIZES, "tiny", TINY)


def llama() -> Any:
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**TINY)).eval()


def test_openvino_keeps_what_it_read() -> None:
    """Its graph, stepping with a state, gives the logits of the whole text."""
    theirs, request = llama(), opened(llama(), int8=False, exact=True)
    text = torch.randint(0, 101, (2, 11), generator=torch.Generator().manual_seed(1))
    past = 0
    for new in (7, 1, 1, 2):
        got = torch.from_numpy(request.logits(text[:, past : past + new].numpy(), past))
        past += new
        with torch.no_grad():
            want = theirs(text[:, :past]).logits[:, -1]
        assert (got - want).abs().max() < 1e-5 * want.abs().max()
    answer = openvino_int8(theirs, text[:1])
    assert answer(5) == answer(5) and len(answer(5)) == 5 and answer(3) == answer(5)[:3]


def test_decode_and_prefill(tiny: None, capsys: pytest.CaptureFixture[str]) -> None:
    lines = decode.bench_decode(["tiny"], prompt=13, new=4, rounds=2)
    names = [line.name for line in lines]
    assert names == ["transformers fp32", decode.BASE, *decode.OURS, decode.WRITER, decode.OPENVINO]
    assert lines[0].agrees == 1.0 and all(line.prompt > 0 for line in lines)
    assert decode.OPENVINO in decode.table(lines, 13, 4)
    read = bench_prefill(["tiny"], visual=9, words=4, rounds=2)
    assert [line.name for line in read] == ["transformers fp32", decode.BASE, "sightline fp32", *decode.OURS]
    assert all(line.seconds > 0 and line.cosine > 0.99 for line in read) and read[2].cosine > 0.999999
    run(tiny, "--sizes", "tiny", "--prefill", "--visual", "5", "--words", "2", "--rounds", "2", "--json")
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(printed) == 6 and printed[0]["to_fp32"] == 1.0


def run(_: None, *words: str) -> None:
    import argparse

    parser = argparse.ArgumentParser()
    decode.add_options(parser)
    decode.run(parser.parse_args(words))


def test_llava_steps(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pairs = same_losses(SMALL, steps=20, batch=3)
    assert max(abs(a - b) for a, b in pairs) < 1e-4 and pairs[-1][0] < pairs[0][0]
    bench_llava.main(["--rounds", "2", "--batch", "2", "--skip-losses", "--json"], SMALL)
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["name"] for row in printed[1:]] == [
        "sightline fp32", "sightline auto", "sightline auto, tower each step", "transformers bf16 autocast",
        bench_llava.BASE,
    ]  # fmt: skip
    assert printed[-1]["ratio"] == 1.0
