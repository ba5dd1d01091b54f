"""Long stacks: the places of all sections, without ever holding more than a window's correspondences.

Where a section goes as a whole, its affine map, depends on all sections, but a few points of each
pair tell it. What is elastic depends on sections near by only: distortions of sections are
independent of each other, and the drift of tissue persists over a few sections. So the affine maps
are solved at once, elastic shifts in windows of sections that overlap, by as many tasks, and what
two windows say of a section is blended from the one to the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from happyneurons.stages.align.params import AlignParams, Lengths
from happyneurons.stages.align.placing import (
    LoadKind,
    LoadMatches,
    Placed,
    load_pairs,
    matched_sections,
    placed,
    solve_settings,
    stiffnesses,
)
from happyneurons.stages.align.solve import Solution, centred, solve_affine, solve_elastic
from happyneurons.stages.align.system import Doubles, NodeGrid, Pair

# Points of a pair that tell its affine map, and by which a section is judged.
_POINTS = 100


@dataclass(frozen=True)
class Window:
    """Positions start <= k < stop in the list of sections that are placed."""

    start: int
    stop: int


def windows(count: int, size: int, overlap: int) -> list[Window]:
    """Windows of about `size` sections that cover `count` ones; neighbours share `overlap` of them."""
    step = max(1, size - overlap)
    number = max(1, -(-(count - overlap) // step))
    edges = [round(i * (count - overlap) / number) for i in range(number + 1)]
    return [Window(a, min(count, b + overlap)) for a, b in pairwise(edges)]


def weights(all_windows: Sequence[Window], index: int) -> Doubles:
    """(sections of the window,) its share in each of them: rising and falling linearly over the overlaps."""
    window = all_windows[index]
    share = np.ones(window.stop - window.start)
    if index > 0:
        shared = all_windows[index - 1].stop - window.start
        share[:shared] = (np.arange(shared) + 0.5) / shared
    if index + 1 < len(all_windows):
        shared = window.stop - all_windows[index + 1].start
        share[len(share) - shared :] = 1 - (np.arange(shared) + 0.5) / shared
    return share


@dataclass(frozen=True)
class LongStack:
    """What the tasks of a long stack share.

    pairs: what the pairs' tasks reported.
    """

    good: Sequence[int]
    pairs: Sequence[Mapping[str, Any]]
    load_matches: LoadMatches
    load_kind: LoadKind
    shape_yx: tuple[int, int]
    px: Lengths
    params: AlignParams

    @property
    def usable(self) -> list[Mapping[str, Any]]:
        return [p for p in self.pairs if p["ok"]]

    @property
    def kept(self) -> list[int]:
        return matched_sections(self.good, self.usable, self.params.anchor)

    def windows(self) -> list[Window]:
        params = self.params
        return windows(len(self.kept), params.window_sections, params.window_overlap)

    def affine(self) -> tuple[Doubles, float]:
        """(k, 2, 3) affine maps of all sections, and the rms of their shifts (px)."""
        kept, (height, width) = self.kept, self.shape_yx
        some = load_pairs(kept, self.usable, self.load_matches, _POINTS)
        return solve_affine(some, _gaps(kept), width, height, solve_settings(self.px, self.params))

    def elastic(self, window: Window, matrices: Doubles) -> tuple[Doubles, float]:
        """(sections of the window, ny, nx, 2) shifts of their nodes, and the rms of elastic distortion (px)."""
        sections = self.kept[window.start : window.stop]
        inside = set(sections)
        usable = [p for p in self.usable if p["a"] in inside and p["b"] in inside]
        height, width = self.shape_yx
        grid = NodeGrid(width, height, self.px.node_spacing_px)
        found = load_pairs(sections, usable, self.load_matches)
        if not found:
            return np.zeros((len(sections), *grid.shape, 2)), 0.0
        stiff = stiffnesses(sections, self.load_kind, self.shape_yx, self.px)
        settings = solve_settings(self.px, self.params)
        return solve_elastic(found, _gaps(sections), matrices[window.start : window.stop], grid, settings, stiff)

    def place(
        self, matrices: Doubles, jitter_px: float, solved: Sequence[tuple[Window, Doubles]], distortion_px: float
    ) -> Placed:
        """All sections from their affine maps and the windows' shifts."""
        kept, (height, width) = self.kept, self.shape_yx
        grid = NodeGrid(width, height, self.px.node_spacing_px)
        shifts = np.zeros((len(kept), *grid.shape, 2))
        order = [window for window, _ in solved]
        for i, (window, found) in enumerate(solved):
            shifts[window.start : window.stop] += weights(order, i)[:, None, None, None] * found
        solution = centred(Solution(matrices, shifts, jitter_px, distortion_px), grid)
        some: list[Pair] = load_pairs(kept, self.usable, self.load_matches, _POINTS)
        return placed(solution, self.good, kept, self.usable, some, self.shape_yx, self.px, self.params)


def _gaps(sections: Sequence[int]) -> Doubles:
    return np.diff(np.asarray(sections, dtype=np.float64))
