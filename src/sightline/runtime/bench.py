"""Timing several ways to do one thing side by side, so that whatever disturbs the machine hits all alike."""

from __future__ import annotations

import datetime
import gc
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from statistics import median, quantiles

import torch


@dataclass(frozen=True)
class Timing:
    """Seconds of one contender over the rounds: the median, and the quartiles around it."""

    median: float
    low: float
    high: float
    rounds: int


def interleaved(
    contenders: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    warmup: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Call every contender once per round, in turn; the order is reversed every other round. Needs at least 2 rounds.

    clock: time.process_time counts the processor's time instead, which a busy machine disturbs less. It means something
    only on one thread (OMP_NUM_THREADS=1), since threads that wait for each other spin.
    """
    names = list(contenders)
    for _ in range(warmup):
        for name in names:
            contenders[name]()
    taken: dict[str, list[float]] = {name: [] for name in names}
    collecting = gc.isenabled()
    gc.disable()
    try:
        for turn in range(rounds):
            for name in names if turn % 2 == 0 else reversed(names):
                start = clock()
                contenders[name]()
                taken[name].append(clock() - start)
    finally:
        if collecting:
            gc.enable()
    return {name: _summary(times) for name, times in taken.items()}


def import_open_clip() -> None:
    """Make `import open_clip` work where torchvision is absent, with the stand-in of the repository's tests/
    (PYTHONPATH=tests); elsewhere nothing is done."""
    if find_spec("torchvision") is None and find_spec("oracles") is not None:
        import_module("oracles").open_clip()


def machine() -> str:
    """One line that says where and when a figure was measured."""
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            model = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), model)
    except OSError:
        pass  # not Linux
    has = torch.cpu.get_capabilities()
    kinds = [name for name in ("avx512_bf16", "amx_bf16", "avx512_vnni", "amx_int8") if has.get(name)]
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    units = ", ".join(kinds) or "no bf16 or int8 units"
    return f"{model}, {torch.get_num_threads()} threads ({units}), torch {torch.__version__}, {today}"


def _summary(times: list[float]) -> Timing:
    low, _, high = quantiles(times, n=4, method="inclusive")
    return Timing(median(times), low, high, len(times))
