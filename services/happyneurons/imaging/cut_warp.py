"""Warps of torn sections: smooth but for cuts, and without a place for what lies on the cuts.

A fold in a section hides tissue: its two sides belong further apart than they are seen. A `CutWarp` has several
`GridWarp`s, its *sheets*, and says for every source px which of them holds there, or none. Sheet 0 is a warp of the
whole section without cuts, which holds far from them; each of the others is what one side of a cut goes by.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from happyneurons.imaging.warp import GridWarp

Floats = NDArray[np.float64]
HIDDEN = 255
"""Instead of a sheet's number: no tissue."""
MOST_SHEETS = HIDDEN


def px_at(shape: tuple[int, ...], xy: Floats, origin_xy: ArrayLike, px: float) -> NDArray[np.intp]:
    """(2, n) rows and columns of a picture of that shape, whose px [j, i] covers `px` source px from
    origin + (i, j) · px on, at (n, 2) points; beyond the picture: those of its border."""
    place = np.floor((xy - np.asarray(origin_xy, dtype=np.float64) + 0.5) / px)
    return np.clip(place, 0, [shape[1] - 1, shape[0] - 1]).astype(np.intp).T[::-1]


def sheets_at(sheet_of: NDArray[np.uint8], xy: ArrayLike, origin_xy: ArrayLike, px: float) -> NDArray[np.uint8]:
    """(n,) values of a picture at (n, 2) points (see `px_at`); HIDDEN for points that are NaN."""
    points = np.asarray(xy, dtype=np.float64)
    there = np.asarray(np.isfinite(points).all(axis=1))
    j, i = px_at(sheet_of.shape, np.where(there[:, None], points, 0), origin_xy, px)
    return np.where(there, sheet_of[j, i], np.uint8(HIDDEN)).astype(np.uint8)


class CutWarp:
    """A map source px → target px in several sheets.

    sheets: of the same grid; sheet_of: (h, w) uint8, px [j, i] covers `px` source px a side (whole px, as in a picture
    averaged down) from origin_xy + (i, j) · px on, HIDDEN where there is no tissue.
    """

    def __init__(
        self, sheets: Sequence[GridWarp], sheet_of: NDArray[np.uint8], origin_xy: ArrayLike, px: float
    ) -> None:
        self.sheets = tuple(sheets)
        self.sheet_of = np.ascontiguousarray(sheet_of, dtype=np.uint8)
        self.origin_xy: Floats = np.asarray(origin_xy, dtype=np.float64).reshape(2)
        self.px = float(px)
        self._reach: dict[int, NDArray[np.uint8]] = {}
        if not 0 < len(self.sheets) <= MOST_SHEETS:
            raise ValueError(f"a warp has 1 to {MOST_SHEETS} sheets, not {len(self.sheets)}")
        used = self.sheet_of[self.sheet_of != HIDDEN]
        if used.size and used.max() >= len(self.sheets):
            raise ValueError(f"sheet {used.max()} is named, there are {len(self.sheets)}")

    def __repr__(self) -> str:
        return f"CutWarp({len(self.sheets)} sheets of {self.sheets[0]!r})"

    @property
    def spacing_px(self) -> float:
        return self.sheets[0].spacing_px

    def translated(self, shift_xy: ArrayLike) -> CutWarp:
        """This map followed by a shift of the target."""
        return CutWarp([s.translated(shift_xy) for s in self.sheets], self.sheet_of, self.origin_xy, self.px)

    def from_corner(self, corner_xy: ArrayLike) -> CutWarp:
        """The same map where source and target are counted from a corner that lies at -corner_xy: both are moved."""
        moved = [s.from_corner(corner_xy) for s in self.sheets]
        return CutWarp(moved, self.sheet_of, self.origin_xy + np.asarray(corner_xy, dtype=np.float64), self.px)

    # --- using it ----------------------------------------------------------------------------

    def map(self, xy: ArrayLike) -> Floats:
        """(n, 2) source points → (n, 2) target points; NaN on a cut."""
        points = np.asarray(xy, dtype=np.float64)
        sheet = sheets_at(self.sheet_of, points, self.origin_xy, self.px)
        target = np.full(points.shape, np.nan)
        for number, warp in enumerate(self.sheets):
            here = sheet == number
            if here.any():
                target[here] = warp.map(points[here])
        return target

    def inverse(self, xy: ArrayLike) -> Floats:
        """(n, 2) target points → (n, 2) source points; NaN where nothing is shown: what a fold hides.

        Where two sheets lie on one another, the one with the higher number.
        """
        target = np.asarray(xy, dtype=np.float64)
        source = np.full(target.shape, np.nan)
        for number, warp in enumerate(self.sheets):
            found = warp.inverse(target)
            here = sheets_at(self.reach(number), found, self.origin_xy, self.px) == 1
            source[here] = found[here]
        return source

    def reach(self, sheet: int) -> NDArray[np.uint8]:
        """(h, w) 1 where a sheet holds, and one px further but on cuts; 0 elsewhere.

        Sheets are the same where they meet. So no target falls between two of them that round a source differently.
        Kept, for every block of a section asks for it: not to be changed.
        """
        if sheet not in self._reach:
            own = cv2.dilate((self.sheet_of == sheet).astype(np.uint8), np.ones((3, 3), np.uint8))
            own[self.sheet_of == HIDDEN] = 0
            self._reach[sheet] = own
        return self._reach[sheet]

    @cached_property
    def cells(self) -> NDArray[np.bool_]:
        """(sheets, ny - 1, nx - 1) the cells of the grid in which each sheet holds somewhere."""
        whole = self.sheets[0]
        ny, nx = (n - 1 for n in whole.nodes.shape[:2])
        corner = self.origin_xy - whole.origin_xy
        i, j = (
            np.clip(((np.arange(n) + 0.5) * self.px - 0.5 + start) // whole.spacing_px, 0, most - 1).astype(np.intp)
            for n, start, most in zip(self.sheet_of.shape[::-1], corner, (nx, ny), strict=True)
        )
        number = (self.sheet_of.astype(np.intp) * ny + j[:, None]) * nx + i
        count = len(self.sheets) * ny * nx
        return np.asarray(np.bincount(number[self.sheet_of != HIDDEN], minlength=count).reshape(-1, ny, nx) > 0)

    # --- keeping it --------------------------------------------------------------------------

    def arrays(self, prefix: str) -> dict[str, np.ndarray]:
        """Arrays for an npz: those of sheet 0, and `PREFIX_cut_nodes` (of the others), `_cut_sheets`, `_cut_grid`
        (origin x, origin y, px). Who does not know cuts can read sheet 0."""
        return self.sheets[0].arrays(prefix) | {
            f"{prefix}_cut_nodes": np.stack([s.nodes for s in self.sheets[1:]]),
            f"{prefix}_cut_sheets": self.sheet_of,
            f"{prefix}_cut_grid": np.array([*self.origin_xy, self.px], dtype=np.float64),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], prefix: str) -> CutWarp:
        """What `arrays` made. Raises KeyError if there is none of that prefix."""
        whole = GridWarp.from_arrays(arrays, prefix)
        grid = arrays[f"{prefix}_cut_grid"]
        others = [whole.with_nodes(nodes) for nodes in arrays[f"{prefix}_cut_nodes"]]
        return cls([whole, *others], arrays[f"{prefix}_cut_sheets"], grid[:2], float(grid[2]))


def section_warp(arrays: Mapping[str, np.ndarray], prefix: str) -> GridWarp | CutWarp:
    """The warp of a section, with its cuts if it has any. Raises KeyError if there is no warp of that prefix."""
    kind = CutWarp if f"{prefix}_cut_sheets" in arrays else GridWarp
    return kind.from_arrays(arrays, prefix)
