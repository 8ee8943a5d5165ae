"""Commands that check and measure: doctor, cost, bench."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sightline.app.options import BUILT_IN, Json, Model
from sightline.app.output import finish, human_bytes, table
from sightline.errors import UsageError

if TYPE_CHECKING:
    from sightline.app.doctor import Diagnosis
    from sightline.app.families.comparing import Families
    from sightline.app.verbs.cost import Cost
    from sightline.app.verbs.measuring import Measured

bench = typer.Typer(
    help="Measured speed beside the peers that are installed.", no_args_is_help=True, rich_markup_mode=None
)


def register(app: typer.Typer) -> None:
    app.command("doctor")(doctor)
    app.command("cost")(cost)
    app.add_typer(bench, name="bench")


def passed_on(help: str) -> dict[str, Any]:
    """Settings of a command whose options belong to the benchmark itself, --help included."""
    free = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
    return {"context_settings": free, "help": help, "add_help_option": False}


@bench.command("embed", **passed_on("The CLIP picture tower: pictures/s at batch 1, 16, 64, and cosines."))
def bench_embed(context: typer.Context) -> None:
    from sightline.app.bench import embed

    _bench(embed, "embed", context.args)


@bench.command("folder", **passed_on("A folder of large JPEGs → vectors in an index: pictures/s, end to end."))
def bench_folder(context: typer.Context) -> None:
    from sightline.app.bench import folder

    _bench(folder, "folder", context.args)


@bench.command("decode", **passed_on("A language model writing token by token: tokens/s beside transformers."))
def bench_decode(context: typer.Context) -> None:
    from sightline.app.bench import decode

    _bench(decode, "decode", context.args)


@bench.command(
    "families", **passed_on("One answer of each family on a tiny checkpoint, beside its oracle: milliseconds.")
)
def bench_families(context: typer.Context) -> None:
    from sightline.app.bench import families

    _bench(families, "families", context.args)


@bench.command(
    "locating", **passed_on("DETR, Depth Anything and Florence-2 beside transformers: milliseconds per picture.")
)
def bench_locating(context: typer.Context) -> None:
    from sightline.app.bench import locating

    _bench(locating, "locating", context.args)


@bench.command("search", **passed_on("One query over 200,000 or --n 1000000 vectors: milliseconds and recall@10."))
def bench_search(context: typer.Context) -> None:
    from sightline.search import bench as measured

    measured.main(context.args)


@bench.command("train", **passed_on("Training steps beside transformers, and equal losses; --llava: LLaVA's stage 2."))
def bench_train(context: typer.Context) -> None:
    if "--llava" in context.args:
        from sightline.training import bench_llava

        bench_llava.main([word for word in context.args if word != "--llava"])
        return
    from sightline.training import bench as measured

    sys.argv = ["sightline bench train", *context.args]
    measured.main()


@bench.command("world", **passed_on("Tabletop scenes with all truth: pictures/s."))
def bench_world(context: typer.Context) -> None:
    from sightline.worlds.tabletop import rate as measured

    sys.argv = ["sightline bench world", *context.args]
    measured.main()


def _bench(module: Any, name: str, arguments: list[str]) -> None:
    import argparse

    parser = argparse.ArgumentParser(
        prog=f"sightline bench {name}", description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    module.add_options(parser)
    module.run(parser.parse_args(arguments))


def doctor(
    families: Annotated[
        bool,
        typer.Option(
            "--families", help="Each family that sees and speaks beside its oracle, on a tiny checkpoint, now."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Is this install sound? Exits with 1 when it is not."""
    from sightline.app.doctor import doctor as run

    found: Diagnosis | Families
    if families:
        found = run(families=True)
        finish(found, as_json, _families)
    else:
        found = run()
        finish(found, as_json, _diagnosis)
    if not found.sound:
        raise typer.Exit(1)


def _diagnosis(found: Diagnosis) -> str:
    marks = {"good": "✓", "note": "·", "bad": "✗"}
    rows = [(marks[check.state], check.name, check.found) for check in found.checks]
    verdict = "This install is sound." if found.sound else "This install is not sound; see the lines marked ✗."
    return table(rows) + "\n\n" + verdict


def _families(found: Families) -> str:
    rows = [
        (
            one.family, one.oracle, "–" if one.difference is None else f"{one.difference:.1e}", f"{one.parameters:,}",
            one.official, one.file, one.lines,
        )
        for one in found.families
    ]  # fmt: skip
    header = ("family", "oracle", "max difference", "parameters", "of", "file", "lines")
    reasons: dict[str, list[str]] = {}
    for one in found.families:
        if one.reason:
            reasons.setdefault(one.reason, []).append(one.family)
    compared = sum(one.difference is not None for one in found.families)
    off = [one.family for one in found.families if one.equal is False]
    verdict = f"not equal: {', '.join(off)}" if off else "each equal to its oracle" if compared else "no oracle is here"
    return "\n".join(
        [
            table(rows, header, right=(2, 3, 6)),
            "",
            *(f"{', '.join(names)}: {reason}" for reason, names in reasons.items()),
            "Max difference: between the logits of a tiny checkpoint, all numbers random, relative to the largest; float32.",
            f"{compared} of {len(found.families)} were compared; {verdict}.",
        ]
    )


def cost(
    reference: Annotated[str | None, typer.Argument(metavar="[MODEL]", help="As --model.")] = None,
    size: Annotated[
        str | None, typer.Option("--size", "-s", help="Picture size in pixels: 224, or HEIGHTxWIDTH.")
    ] = None,
    batch: Annotated[int, typer.Option("--batch-size", min=1, help="Inputs at once.")] = 1,
    model: Model = BUILT_IN,
    measure: Annotated[
        bool,
        typer.Option("--measure", help="Decoders, LLaVA: read one batch, and compare the memory with the forecast."),
    ] = False,
    tokens: Annotated[int | None, typer.Option(min=1, help="--measure: how many a decoder reads.")] = None,
    dtype: Annotated[str, typer.Option(help="--measure: float32 or bfloat16.")] = "float32",
    as_json: Json = False,
) -> None:
    """Tokens, parameters, operations and bytes of attention scores before anything runs; config.json is enough."""
    if measure:
        from sightline.app.verbs.measuring import measure_memory

        found = measure_memory(reference or model, parse_size(size), batch_size=batch, tokens=tokens, dtype=dtype)
        finish(found, as_json, _measured)
        return
    from sightline.app.verbs.cost import cost as run

    finish(run(reference or model, parse_size(size), batch_size=batch), as_json, _cost)


def _measured(found: Measured) -> str:
    return (
        f"{found.model} ({found.kind}), {found.input}, {found.dtype}, batch {found.batch_size}: forecast "
        f"{human_bytes(found.forecast_bytes)} (weights {human_bytes(found.weight_bytes)}, activations "
        f"{human_bytes(found.activation_bytes)}, held by allocator and libraries {human_bytes(found.held_bytes)}), "
        f"measured {human_bytes(found.measured_bytes)}; the forecast is "
        f"{found.ratio:.2f} of it"
    )


def parse_size(text: str | None) -> tuple[int, int] | None:
    """ "224" → (224, 224); "480x640" → (480, 640)."""
    if text is None:
        return None
    found = re.fullmatch(r"\s*(\d{1,6})(?:\s*[x×]\s*(\d{1,6}))?\s*", text)
    if found is None:
        raise UsageError(f'"{text}" is no picture size; give pixels per side (224) or HEIGHTxWIDTH (480x640).')
    return int(found[1]), int(found[2] or found[1])


def _cost(done: Cost) -> str:
    weights = ", ".join(f"{human_bytes(count)} in {name}" for name, count in done.weight_bytes.items())
    rows = [
        (
            t.tower, t.input, f"{t.tokens:,}", f"{t.parameters / 1e6:.1f} M", f"{t.flops / 1e9:,.1f} G", t.layers, t.heads,
            human_bytes(t.activation_bytes), human_bytes(t.score_bytes_per_layer), human_bytes(t.score_bytes),
            human_bytes(t.cache_bytes) if t.cache_bytes else "–",
        )
        for t in done.towers
    ]  # fmt: skip
    header = (
        "tower",
        "input",
        "tokens",
        "parameters",
        "FLOPs",
        "attentions",
        "heads",
        "activations",
        "scores, one layer",
        "scores, all",
        "cache",
    )
    batch = f", for a batch of {done.batch_size}" if done.batch_size > 1 else ""
    return "\n".join(
        [
            f"{done.model} ({done.kind}): {done.parameters / 1e6:.1f} M parameters; weights {weights}",
            table(rows, header, right=range(2, 11)) + batch,
            "FLOPs: 2 per multiply-add. Activations: most that is alive at once, float32. Scores: float32, if attention were "
            "computed step by step; the kernels used here never hold them.",
        ]
    )
