"""Folds: which dark or bright bands of a section tear its tissue apart.

A fold is a long thin band of odd grey values, and so are some processes of glia. What tells them is tissue beside it:
across a fold, that of the next sections jumps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from happyneurons.imaging.cut_warp import HIDDEN, px_at, sheets_at
from happyneurons.stages.align.coarse import Level, MatchSettings, pyramid
from happyneurons.stages.align.cut_mesh import Cut
from happyneurons.stages.align.matching import match_pair
from happyneurons.stages.align.prepare import ARTIFACT, TISSUE
from happyneurons.stages.align.system import Doubles

# Faint places of a band are bridged over so many working px.
_BRIDGE_PX = 5
# A band is so many times as long as it is wide, or more.
_LEAST_ASPECT = 4.0
# A fold crosses so many cells of the grid, or more: shorter ones cannot be cut.
_LEAST_CELLS = 1.5
_MOST_CANDIDATES = 20
# The jump is taken between tissue at most so many cells from the band.
_REACH_CELLS = 2.0
# Tissue is torn if it jumps by so many times the jump's standard error and so many working px.
_SIGNIFICANT = 4.0
_LEAST_JUMP_PX = 2.0
_LEAST_POINTS = 6

Mask = NDArray[np.bool_]


def candidates(kind: NDArray[np.uint8], cell_px: float) -> NDArray[np.uint8]:
    """(h, w) bands in a working picture that may be folds, numbered from 1 on, the longest first; 0 elsewhere.

    cell_px: size of a cell of the grid, working px.
    """
    odd = (kind == ARTIFACT).astype(np.uint8)
    square = np.ones((2 * _BRIDGE_PX + 1, 2 * _BRIDGE_PX + 1), np.uint8)
    # Beyond the border a band goes on: closing must not end it there.
    wide = cv2.copyMakeBorder(odd, *4 * [2 * _BRIDGE_PX], cv2.BORDER_REPLICATE)
    closed = cv2.morphologyEx(wide, cv2.MORPH_CLOSE, square)[2 * _BRIDGE_PX :, 2 * _BRIDGE_PX :]
    closed = np.ascontiguousarray(closed[: odd.shape[0], : odd.shape[1]])
    count, labels, stats, _ = cv2.connectedComponentsWithStats(closed, connectivity=8)
    found: list[tuple[float, int]] = []
    for label in range(1, count):
        x, y, width, height, area = (int(v) for v in stats[label])
        if max(width, height) < _LEAST_CELLS * cell_px / np.sqrt(2):
            continue
        band = (labels[y : y + height, x : x + width] == label).astype(np.uint8)
        depth = cv2.distanceTransform(cv2.copyMakeBorder(band, 1, 1, 1, 1, cv2.BORDER_CONSTANT), cv2.DIST_L2, 3)
        # The mean depth in a strip is a quarter of its width.
        thickness = 4 * float(depth.sum()) / area
        length = area / thickness
        if length >= _LEAST_CELLS * cell_px and length >= _LEAST_ASPECT * thickness:
            found.append((length, label))
    bands = np.zeros(count, dtype=np.uint8)
    for number, (_, label) in enumerate(sorted(found, key=lambda f: (-f[0], f[1]))[:_MOST_CANDIDATES], start=1):
        bands[label] = number
    return np.asarray(bands[labels])


@dataclass(frozen=True)
class Section:
    """A working picture (h, w) uint8, its kinds of px, and where it is cut."""

    image: NDArray[np.uint8]
    kind: NDArray[np.uint8]
    cut: Cut | None = None

    def levels(self, detail_px: float, sheet: int) -> list[Level]:
        """The pyramid of what a sheet sees."""
        tissue = self.kind == TISSUE
        if self.cut is not None:
            tissue &= self.cut.sees(sheet)
        return pyramid(self.image, tissue, detail_px)

    @property
    def sheets(self) -> int:
        return 1 if self.cut is None else self.cut.sheets


@dataclass(frozen=True)
class Matches:
    """Corresponding px (n, 2) of two sections, and how well they correlate (n,)."""

    a_xy: Doubles
    b_xy: Doubles
    correlation: Doubles


def match_sheets(a: Section, b: Section, whole: Matches, settings: MatchSettings, factor: int) -> Matches:
    """As `match_pair`, where tissue beside a cut is compared by its own side alone.

    whole: what was found without cuts, which holds far from them.
    """
    levels_a, levels_b = ([s.levels(settings.detail_px, sheet) for sheet in range(s.sheets)] for s in (a, b))
    parts = []
    for i, first in enumerate(levels_a):
        for j, second in enumerate(levels_b):
            if i == j == 0:
                match = whole
            else:
                found = match_pair(first, second, settings).scaled(factor)
                match = Matches(found.a_xy, found.b_xy, found.correlation)
            own = (_seen_by(a.cut, match.a_xy) == i) & (_seen_by(b.cut, match.b_xy) == j)
            parts.append((match.a_xy[own], match.b_xy[own], match.correlation[own]))
    return Matches(*(np.concatenate(x) for x in zip(*parts, strict=True)))


def _seen_by(cut: Cut | None, xy: Doubles) -> NDArray[np.uint8]:
    return np.zeros(len(xy), dtype=np.uint8) if cut is None else sheets_at(cut.seen_by, xy, (0.0, 0.0), cut.factor)


@dataclass(frozen=True)
class Jump:
    """xy_px: (2,) px of the section; error_px: standard error of each coordinate."""

    xy_px: Doubles
    error_px: float

    def torn(self, factor: int) -> bool:
        """Whether tissue is torn apart there. factor: section px per working px."""
        return float(np.linalg.norm(self.xy_px)) > max(_SIGNIFICANT * self.error_px, _LEAST_JUMP_PX * factor)


def jump(cut: Cut, band: Mask, xy: Doubles, moved: Doubles, cell_px: float) -> Jump | None:
    """How far tissue jumps across one band of a cut.

    xy (n, 2): places in the cut section; moved (n, 2): from there to another section; cell_px: size of a cell of the
    grid, px of the section. None if too few places lie on both sides.

    Near the band displacement is fitted by a plane for all of it and one more shift for each side.
    """
    away = cv2.distanceTransform((~band).astype(np.uint8), cv2.DIST_L2, 3) * cut.factor
    j, i = px_at(band.shape, xy, (0.0, 0.0), cut.factor)
    sheet = cut.sheet_at(xy)
    near = (away[j, i] <= _REACH_CELLS * cell_px) & (sheet != HIDDEN) & (sheet > 0)
    sides, counts = np.unique(sheet[near], return_counts=True)
    sides = np.sort(sides[np.argsort(-counts, kind="stable")][:2])
    if len(sides) < 2 or np.sort(counts)[-2] < _LEAST_POINTS:
        return None
    use = near & np.isin(sheet, sides)
    points, shift = xy[use], moved[use]
    side = np.where(sheet[use] == sides[0], 0.5, -0.5)
    design = np.column_stack([np.ones(len(points)), (points - points.mean(axis=0)) / cell_px, side])
    weight = np.ones(len(points))
    for _ in range(6):
        normal = np.einsum("ni,n,nj->ij", design, weight, design) + 1e-9 * np.eye(4)
        fit = np.linalg.solve(normal, np.einsum("ni,n,nj->ij", design, weight, shift))
        miss = np.linalg.norm(shift - np.einsum("ni,ij->nj", design, fit), axis=1)
        scale = max(0.1, 2 * float(np.median(miss)))
        weight = 1 / (1 + (miss / scale) ** 2)
    # Tissue that moves does so over about a cell: points nearer to one another say the same.
    cells = np.unique(np.floor(points / cell_px), axis=0)
    variance = 1e-6 + float(np.sum(weight * miss**2) / np.sum(weight)) / 2
    inverse = np.linalg.inv(normal * len(cells) / np.sum(weight))
    return Jump(fit[3], float(np.sqrt(variance * inverse[3, 3])))


def mean_jump(jumps: Sequence[Jump | None]) -> Jump | None:
    """By what `jump` found for each neighbouring section; None if for none.

    Where it is tissue that moves from section to section, it jumps one way to the section above and the other way to
    that below, and the mean is small.
    """
    found = [j for j in jumps if j is not None]
    if not found:
        return None
    precision = [j.error_px**-2 for j in found]
    return Jump(
        np.sum([p * j.xy_px for p, j in zip(precision, found, strict=True)], axis=0) / sum(precision),
        float(np.sqrt(1 / sum(precision))),
    )
