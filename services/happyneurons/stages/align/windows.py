"""Long stacks: the places of all sections, without ever holding more than a window's correspondences.

Where a section goes as a whole, its affine map, depends on all sections, but a few points of each
pair tell it. What is elastic depends on sections near by only: distortions of sections are
independent of each other, and the drift of tissue persists over a few sections. So the affine maps
are solved at once, elastic shifts in windows of sections that overlap, by as many tasks, and what
two windows say of a section is blended from the one to the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from happyneurons.stages.align.placing import MatchedStack, Placed, placed
from happyneurons.stages.align.solve import AffineMaps, Solution, centred, solve_affine, solve_elastic
from happyneurons.stages.align.system import Doubles

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


def windows_of(stack: MatchedStack) -> list[Window]:
    return windows(len(stack.kept), stack.px.window_sections, stack.params.window_overlap)


def affine_maps(stack: MatchedStack) -> AffineMaps:
    """Affine maps of all sections."""
    return solve_affine(stack.points(stack.kept, _POINTS), _gaps(stack.kept), *stack.size, stack.settings)


def elastic_shifts(stack: MatchedStack, window: Window, affine: AffineMaps) -> tuple[list[Doubles], float]:
    """Shifts of the nodes of the window's sections, as in `Solution`, and the rms of elastic distortion (px)."""
    sections = stack.kept[window.start : window.stop]
    found = stack.points(sections)
    if not found:
        return [np.zeros((1, *stack.grid.shape, 2))] * len(sections), 0.0
    return solve_elastic(
        found, _gaps(sections), affine.part(window.start, window.stop), stack.grid, stack.settings,
        stack.stiffnesses(sections), stack.cuts(sections),
    )  # fmt: skip


def place_windows(
    stack: MatchedStack,
    affine: AffineMaps,
    solved: Sequence[tuple[Window, Sequence[Doubles]]],
    distortion_px: float,
) -> Placed:
    """All sections from their affine maps and the windows' shifts."""
    shifts = [np.zeros((1, *stack.grid.shape, 2))] * len(stack.kept)
    order = [window for window, _ in solved]
    for i, (window, found) in enumerate(solved):
        for k, share, part in zip(range(window.start, window.stop), weights(order, i), found, strict=True):
            shifts[k] = shifts[k] + share * part
    solution = centred(Solution(affine.matrices, shifts, affine.jitter_px, distortion_px), stack.grid)
    return placed(stack, solution, stack.points(stack.kept, _POINTS))


def _gaps(sections: Sequence[int]) -> Doubles:
    return np.diff(np.asarray(sections, dtype=np.float64))
