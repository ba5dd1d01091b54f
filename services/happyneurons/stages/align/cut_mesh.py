"""The grid of a section that folds have torn: nodes are doubled where tissue is on two sides of a cut.

A cell of the grid that a cut divides stands for itself once for each piece of tissue in it. Every piece has four nodes
of its own; those of pieces in neighbouring cells are one where tissue goes on from the one to the other (the virtual
node algorithm of Molino, Bao and Fedkiw 2004). So both sides of a cut move freely, and where it ends within the section
they are one again.

Nodes with several copies are told apart by *sheets*: sheet 0 is what lies far from all cuts, the others are the
surroundings of one side of a cut each, on which every node has one copy only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import cv2
import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from scipy.sparse.csgraph import connected_components

from happyneurons.imaging.cut_warp import HIDDEN, MOST_SHEETS, sheets_at
from happyneurons.stages.align.system import Doubles, NodeGrid, smooth_field_precision

# Tissue on two sides of a cut is one where they touch over more than twice this, working px: a fold has faint places.
_LEAK_PX = 2
# What hangs together in a cell is told from what is so many working px around it, too.
_AROUND_PX = 8
# Two px of a band lie on either side of its middle if their nearest tissue is so many times their depth and so many px
# more apart: less is the band's rough border.
_ACROSS, _ROUGH_PX = 1.2, 1.5
# A sheet reaches so many cells beyond those with doubled nodes, and what it says is used in all but the last.
_RINGS = 2

Labels = NDArray[np.int32]


@dataclass(frozen=True)
class Cut:
    """sheet_of: (h, w) uint8 of a section's working picture, HIDDEN on the cuts themselves;
    node_of: (sheets, ny, nx) int32, which unknown a node is on each sheet, -1 where the sheet does not reach (sheet 0:
    where nodes are doubled); edges: (m, 2) int32 unknowns that are neighbours; factor: section px per working px."""

    sheet_of: NDArray[np.uint8]
    node_of: Labels
    edges: Labels
    factor: int

    def arrays(self) -> dict[str, np.ndarray]:
        return {
            "sheet_of": self.sheet_of, "node_of": self.node_of, "edges": self.edges,
            "factor": np.array(self.factor, dtype=np.int64),
        }  # fmt: skip

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Cut:
        return cls(arrays["sheet_of"], arrays["node_of"], arrays["edges"], int(arrays["factor"]))

    @property
    def sheets(self) -> int:
        return len(self.node_of)

    @cached_property
    def bodies(self) -> Labels:
        """(h, w) tissue that hangs together, numbered from 1 on; 0 on cuts."""
        return np.asarray(cv2.connectedComponents((self.sheet_of != HIDDEN).astype(np.uint8), connectivity=4)[1])

    def sees(self, sheet: int) -> NDArray[np.bool_]:
        """(h, w) tissue that is not beyond a cut from a sheet, as far as can be told."""
        if sheet == 0:
            return self.sheet_of != HIDDEN
        own = np.unique(self.bodies[self.sheet_of == sheet])
        return np.isin(self.bodies, own) & ((self.sheet_of == 0) | (self.sheet_of == sheet))

    @cached_property
    def seen_by(self) -> NDArray[np.uint8]:
        """(h, w) sheet that sees most of a px's own tissue and none beyond a cut; HIDDEN on cuts.

        It is the px's own sheet, but far from cuts that leave several bodies one of those of its body.
        """
        best = self.sheet_of.copy()
        if self.bodies.max() > 1:
            for body in range(1, self.bodies.max() + 1):
                here = self.bodies == body
                sheets = np.unique(self.sheet_of[here])
                if sheets[-1]:
                    best[here & (best == 0)] = sheets[sheets > 0][0]
        return best

    def sheet_at(self, xy: Doubles) -> NDArray[np.uint8]:
        """(n,) sheet of (n, 2) px of the section, HIDDEN on a cut."""
        return sheets_at(self.sheet_of, xy, (0.0, 0.0), self.factor)


class CutGrid:
    """Unknowns of a cut section: as `NodeGrid` has them, with copies."""

    def __init__(self, grid: NodeGrid, cut: Cut) -> None:
        self.grid, self.cut = grid, cut
        self.count = int(cut.node_of.max()) + 1

    @cached_property
    def places(self) -> Labels:
        """(count,) node of the plain grid, row by row, that each unknown is a copy of."""
        places = np.zeros(self.count, dtype=np.int32)
        flat = np.arange(self.grid.count, dtype=np.int32)
        for nodes in self.cut.node_of.reshape(self.cut.sheets, -1):
            places[nodes[nodes >= 0]] = flat[nodes >= 0]
        return places

    def basis(self, points: Doubles) -> Any:
        """Bilinear interpolation at (n, 2) points of tissue, each on its own sheet, as (n, count) matrix."""
        plain = self.grid.basis(points).tocoo()
        sheet = self.cut.sheet_at(points)
        sheet[sheet == HIDDEN] = 0
        flat = self._columns[sheet[plain.row], plain.col]
        return sp.csr_matrix((plain.data, (plain.row, flat)), shape=(len(points), self.count))

    @cached_property
    def _columns(self) -> Labels:
        """(sheets, nodes) unknowns, with some copy where a sheet does not reach: nothing there asks for it."""
        nodes = self.cut.node_of.reshape(self.cut.sheets, -1)
        some = np.zeros(self.grid.count, dtype=np.int32)
        some[self.places[::-1]] = np.arange(self.count - 1, -1, -1, dtype=np.int32)
        return np.where(nodes >= 0, nodes, some)

    def coarse(self) -> Any:
        """As that of the plain grid: smooth maps know no cuts."""
        return self.grid.coarse()[self.places]

    def precision(self, rms_px: float, range_px: float, stiffness: Doubles | None = None) -> Any:
        """As that of the plain grid, where only copies on the same side are neighbours."""
        flat = None if stiffness is None else stiffness.ravel()[self.places]
        first, second = self.cut.edges.T
        return smooth_field_precision(self.count, first, second, self.grid.spacing_px, rms_px, range_px, flat)

    def sheet_values(self, values: Doubles) -> tuple[Doubles, NDArray[np.bool_]]:
        """(sheets, ny, nx, c) of (count, c) values of the unknowns, and where they are known.

        Sheet 0 has the mean of the copies where there are several.
        """
        nodes = self.cut.node_of
        found = values[np.maximum(nodes, 0)]
        copies = np.bincount(self.places, minlength=self.grid.count)
        means = [np.bincount(self.places, v, minlength=self.grid.count) / copies for v in values.T]
        found[0] = np.stack(means, axis=-1).reshape(found[0].shape)
        known = nodes >= 0
        known[0] = True
        return found, known


def cut_along(hidden: NDArray[np.bool_], grid: NodeGrid, factor: int) -> Cut | None:
    """The cut along the folds that `hidden` (h, w), px of the working picture, shows; None if it divides no cell."""
    pieces, cell_of = _pieces(_middle(hidden), grid, factor)
    nodes, edges = _shared_nodes(pieces, cell_of, grid)
    sheets = _sheets(nodes, cell_of, pieces, grid)
    if sheets is None:
        return None
    sheet_of_piece, node_of = sheets
    height, width = hidden.shape
    seen = pieces[:height, :width]
    sheet_of = np.where(hidden, HIDDEN, sheet_of_piece[seen]).astype(np.uint8)
    return Cut(sheet_of, node_of, edges, factor)


def _middle(hidden: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(h, w) bool: a line along the middle of bands, however wide they are.

    It is where the nearest tissue of neighbouring px lies far apart (the integer medial axis of Hesselink and
    Roerdink 2008).
    """
    depth, number = cv2.distanceTransformWithLabels(
        hidden.astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    place = np.zeros((number.max() + 1, 2), dtype=np.float32)
    place[number[~hidden]] = np.argwhere(~hidden)
    nearest = place[number]
    line = np.zeros(hidden.shape, dtype=np.uint8)
    for here, there in ((np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:-1], np.s_[1:])):
        apart = np.linalg.norm(nearest[here] - nearest[there], axis=-1)
        across = hidden[here] & hidden[there] & (apart > _ACROSS * depth[here] + _ROUGH_PX)
        line[here] |= across
        line[there] |= across
    return line > 0


def _pieces(hidden: NDArray[np.bool_], grid: NodeGrid, factor: int) -> tuple[Labels, Labels]:
    """(h', w') piece of every px, -1 on the lines `hidden`, and (pieces,) the cell, row by row, that each lies in.

    The picture is repeated at its border, so that it covers the grid.
    """
    ny, nx = (n - 1 for n in grid.shape)
    high, wide = (int(np.ceil(n * grid.spacing_px / factor)) + 1 for n in (ny, nx))
    full = cv2.copyMakeBorder(
        hidden.astype(np.uint8), 0, max(0, high - hidden.shape[0]), 0, max(0, wide - hidden.shape[1]),
        cv2.BORDER_REPLICATE,
    )  # fmt: skip
    rows, columns = (
        np.clip((((np.arange(n) + 0.5) * factor - 0.5) / grid.spacing_px).astype(np.int32), 0, most - 1)
        for n, most in zip(full.shape, (ny, nx), strict=True)
    )
    pieces = rows[:, None] * nx + columns[None, :]
    cells = list(range(ny * nx))
    ball = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * _LEAK_PX + 1, 2 * _LEAK_PX + 1))
    wider = cv2.dilate(full, ball)
    for cell in np.unique(pieces[wider > 0]).tolist():
        ys, xs = np.flatnonzero(rows == cell // nx), np.flatnonzero(columns == cell % nx)
        inside = np.s_[ys[0] : ys[-1] + 1, xs[0] : xs[-1] + 1]
        # Seen with some surroundings: of the tissue on one side, the cell may have a sliver only.
        top, left = max(0, ys[0] - _AROUND_PX), max(0, xs[0] - _AROUND_PX)
        around = np.s_[top : ys[-1] + 1 + _AROUND_PX, left : xs[-1] + 1 + _AROUND_PX]
        _, labels = cv2.connectedComponents((wider[around] == 0).astype(np.uint8), connectivity=4)
        if labels.any():
            # What lies near the cut belongs to the nearest piece.
            _, nearest = distance_transform_edt(labels == 0, return_indices=True)
            labels = labels[nearest[0], nearest[1]]
        own = labels[ys[0] - top :, xs[0] - left :][: len(ys), : len(xs)]
        seen = np.unique(own[full[inside] == 0])
        numbers = np.zeros(labels.max() + 1, dtype=np.int32)
        numbers[seen] = [cell, *range(len(cells), len(cells) + len(seen) - 1)]
        cells += [cell] * (len(seen) - 1)
        pieces[inside] = np.where(full[inside] > 0, -1, numbers[own])
    return pieces, np.array(cells, dtype=np.int32)


def _shared_nodes(pieces: Labels, cell_of: Labels, grid: NodeGrid) -> tuple[Labels, Labels]:
    """(pieces, 4) numbers of each piece's nodes (corners 00, 01, 10, 11 as (row, column)), and the (m, 2) edges."""
    nx = grid.shape[1]
    corner = {(j, i): 2 * j + i for j in (0, 1) for i in (0, 1)}
    same = [np.zeros((0, 2), dtype=np.int64)]
    # Across a border of two cells: the corners of the one that are corners of the other.
    across_x = ((corner[0, 1], corner[0, 0]), (corner[1, 1], corner[1, 0]))
    across_y = ((corner[1, 0], corner[0, 0]), (corner[1, 1], corner[0, 1]))
    for a, b, shared in ((pieces[:, :-1], pieces[:, 1:], across_x), (pieces[:-1], pieces[1:], across_y)):
        meet = (a != b) & (a >= 0) & (b >= 0) & (cell_of[a] != cell_of[b])
        touching = np.unique(np.stack([a[meet], b[meet]], axis=1), axis=0).astype(np.int64)
        same += [4 * touching + np.array(pair) for pair in shared]
    links = np.concatenate(same)
    size = 4 * len(cell_of)
    graph = sp.coo_matrix((np.ones(len(links)), (links[:, 0], links[:, 1])), shape=(size, size))
    _, group = connected_components(graph, directed=False)
    # Numbered along the plain grid, then by copies: whatever scipy's order is.
    place = _places(cell_of, nx).ravel()
    first = np.full(group.max() + 1, np.iinfo(np.int64).max)
    np.minimum.at(first, group, place * size + np.arange(size))
    number = np.empty(len(first), dtype=np.int32)
    number[np.argsort(first, kind="stable")] = np.arange(len(first), dtype=np.int32)
    nodes = number[group].reshape(-1, 4)
    ends = np.concatenate([nodes[:, [0, 1]], nodes[:, [2, 3]], nodes[:, [0, 2]], nodes[:, [1, 3]]])
    return nodes, np.unique(np.sort(ends, axis=1), axis=0).astype(np.int32)


def _sheets(nodes: Labels, cell_of: Labels, pieces: Labels, grid: NodeGrid) -> tuple[Labels, Labels] | None:
    """(pieces,) sheet of each piece and `Cut.node_of`; None if no node has more than one copy."""
    ny, nx = grid.shape
    place = _places(cell_of, nx)
    copies = np.zeros(int(nodes.max()) + 1, dtype=np.int64)
    copies[nodes] = place
    doubled = np.asarray(np.bincount(copies, minlength=ny * nx) > 1)
    if not doubled.any():
        return None
    torn = np.asarray(doubled[place].any(axis=1))
    at_node: dict[int, list[int]] = {}
    for piece, own in enumerate(nodes.tolist()):
        for node in own:
            at_node.setdefault(node, []).append(piece)
    beside = [sorted({q for node in own for q in at_node[node]}) for own in nodes.tolist()]
    sheet_of_piece = np.zeros(len(nodes), dtype=np.int32)
    node_of = [_empty(ny * nx)]
    for body in _bodies(torn, beside):
        for start in body:
            if sheet_of_piece[start] == 0:
                sheet = len(node_of)
                taken = _spread(start, set(body), beside, nodes, place, sheet_of_piece == 0)
                node_of.append(_empty(ny * nx))
                sheet_of_piece[taken] = sheet
                node_of[sheet][place[taken]] = nodes[taken]
    # Around them, where copies are the same on all sheets.
    for sheet in range(1, len(node_of)):
        ring = np.flatnonzero(torn & (sheet_of_piece == sheet))
        for last in range(_RINGS):
            ring = np.array(sorted({q for piece in ring for q in beside[piece] if not torn[q]}), dtype=np.int64)
            node_of[sheet][place[ring]] = nodes[ring]
            if last < _RINGS - 1:
                free = ring[sheet_of_piece[ring] == 0]
                sheet_of_piece[free] = sheet
    plain = np.flatnonzero(~torn)
    node_of[0][place[plain]] = nodes[plain]
    if len(node_of) > MOST_SHEETS:
        return None
    return sheet_of_piece, np.stack(node_of).reshape(-1, ny, nx)


def _places(cell_of: Labels, nx: int) -> NDArray[np.int64]:
    """(pieces, 4) node of the plain grid, row by row, at each corner."""
    j, i = np.divmod(cell_of.astype(np.int64), nx - 1)
    return np.stack([(j + dj) * nx + i + di for dj in (0, 1) for di in (0, 1)], axis=1)


def _empty(size: int) -> Labels:
    return np.full(size, -1, dtype=np.int32)


def _bodies(torn: NDArray[np.bool_], beside: list[list[int]]) -> list[list[int]]:
    """Torn pieces that hang together, the largest first."""
    left, bodies = set(np.flatnonzero(torn).tolist()), []
    while left:
        body, todo = [], [min(left)]
        left.discard(todo[0])
        while todo:
            piece = todo.pop()
            body.append(piece)
            new = [q for q in beside[piece] if q in left]
            left.difference_update(new)
            todo += new
        bodies.append(sorted(body))
    return sorted(bodies, key=lambda body: (-len(body), body[0]))


def _spread(
    start: int, body: set[int], beside: list[list[int]], nodes: Labels, place: NDArray[np.int64],
    free: NDArray[np.bool_],
) -> list[int]:  # fmt: skip
    """From one piece on, all of its body that can lie on one sheet: no node has two copies on it."""
    copy: dict[int, int] = {}
    taken, todo, seen = [], [start], {start}
    while todo:
        piece = todo.pop(0)
        own = dict(zip(place[piece].tolist(), nodes[piece].tolist(), strict=True))
        if any(copy.get(p, node) != node for p, node in own.items()):
            continue
        copy |= own
        taken.append(piece)
        new = [q for q in beside[piece] if q in body and q not in seen and free[q]]
        seen.update(new)
        todo += new
    return sorted(taken)
