"""How many pictures a second this machine draws: python -m sightline.worlds.tabletop.rate [--size 128] [--workers 2]"""

from __future__ import annotations

import argparse
import json
import time

from .stream import render_many


def rate(size: int = 128, workers: int = 2, count: int = 400) -> float:
    """Pictures per second with all truth, the start of the workers left out."""
    stream = render_many(range(count + 4 * workers), "val", size, workers)
    for _ in range(4 * workers):
        next(stream)
    start = time.perf_counter()
    drawn = sum(1 for _ in stream)
    return drawn / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    figure = rate(options.size, options.workers, options.count)
    if options.json:
        print(json.dumps({"pictures_per_second": figure, **vars(options)}))
        return
    print(f"{figure:.0f} pictures/s at {options.size}x{options.size} with all truth, {options.workers} workers")


if __name__ == "__main__":
    main()
