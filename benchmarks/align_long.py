"""A stack of ten thousand sections: time and memory of the tasks that place them, on matches made up with known truth.

usage: PYTHONPATH=services python benchmarks/align_long.py [--sections 10000] [--points 1600] [--windows 2]

Sections of 2000² px are shifted, turned and bent at random (smooth fields of a few px); each pair of neighbours has
matches with noise of 1 px. No pictures: matching is a task a pair and does not know how long the stack is. Run are the
task `affine`, the first tasks `windows`, and the task `place` with all other windows at zero. Prints JSON: seconds and
the process's largest memory after each of them, and the distance of the same tissue in neighbouring sections of the
windows that were run (median, 95th percentile, px).
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Mapping
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np

from happyneurons.stages.align.params import AlignParams, Lengths
from happyneurons.stages.align.placing import MatchedStack
from happyneurons.stages.align.windows import affine_maps, elastic_shifts, place_windows, windows_of

SIZE, SHIFT_PX, TURN, BEND_PX, NOISE_PX = 2000, 20.0, 0.02, 4.0, 1.0


def places(side: int) -> np.ndarray:
    axis = (np.arange(side) + 0.5) * SIZE / side
    return np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)


def distortion(z: int, p: np.ndarray) -> np.ndarray:
    """(n, 2) px that section px (n, 2) lie off their true place: a turn, a shift, and smooth waves."""
    rng = np.random.default_rng([1, z])
    centre = p - SIZE / 2
    angle, shift = rng.normal(0, TURN), rng.normal(0, SHIFT_PX, 2)
    waves = rng.normal(0, BEND_PX, (2, 2))
    phases = rng.uniform(0, 2 * np.pi, (2, 2))
    bent = np.stack(
        [sum(waves[c, i] * np.sin(np.pi * p[:, i] / SIZE + phases[c, i]) for i in (0, 1)) for c in (0, 1)], axis=1
    )
    return np.asarray(angle * np.stack([-centre[:, 1], centre[:, 0]], axis=1) + shift + bent)


@lru_cache(maxsize=4)
def seen(z: int, side: int) -> np.ndarray:
    """Section px (n, 2) where side × side places of the tissue are seen."""
    tissue = places(side)
    p = tissue.copy()
    for _ in range(6):
        p = tissue - distortion(z, p)
    return p


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", type=int, default=10_000)
    parser.add_argument("--points", type=int, default=1600, help="matches of a pair")
    parser.add_argument("--windows", type=int, default=2, help="so many are solved")
    options = parser.parse_args()
    side = round(np.sqrt(options.points))
    count = side * side

    def load_matches(a: int, b: int) -> Mapping[str, np.ndarray]:
        noise = np.random.default_rng([2, a, b]).normal(0, NOISE_PX, (count, 2))
        return {"a_xy": seen(a, side), "b_xy": seen(b, side) + noise, "correlation": np.full(count, 0.7)}

    kind = np.ones((SIZE // 4, SIZE // 4), np.uint8)
    params = AlignParams()
    good = list(range(options.sections))
    pairs = [{"a": z, "b": z + 1, "ok": True, "found": 1.0} for z in good[:-1]]
    lengths = Lengths.of(params, SIZE, SIZE, (2.5, 2.5, 30.0))
    stack = MatchedStack(good, pairs, load_matches, lambda z: kind, lambda z: None, (SIZE, SIZE), lengths, params)
    report: dict[str, Any] = {"sections": options.sections, "points_of_a_pair": count}
    began = time.perf_counter()

    def done(name: str) -> None:
        nonlocal began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        report[name] = {"seconds": round(time.perf_counter() - began, 1), "peak_gb": round(peak, 2)}
        print(json.dumps({name: report[name]}), flush=True)
        began = time.perf_counter()

    affine = affine_maps(stack)
    done("affine")
    solved = []
    for i, window in enumerate(windows_of(stack)):
        if i < options.windows:
            solved.append((window, elastic_shifts(stack, window, affine)[0]))
            done(f"window_{i}")
        else:
            solved.append((window, [np.zeros_like(solved[0][1][0])] * (window.stop - window.start)))
    placed = place_windows(stack, affine, solved, 1.0)
    done("place")
    last = windows_of(stack)[options.windows - 1].stop - params.window_overlap
    maps = [placed.warps[z].map(seen(z, side)) for z in range(last)]
    apart = np.concatenate([np.linalg.norm(b - a, axis=1) for a, b in pairwise(maps)])
    report["neighbours_px"] = [round(float(v), 3) for v in np.percentile(apart, [50, 95])]
    print(json.dumps(report))


if __name__ == "__main__":
    main()
