"""Where each tile lies and how it bends: positions from all pairs, then one elastic solve for a section.

Unknown are the displacements of the nodes of a grid on each tile. Matches ask that corresponding
px meet; a membrane term (first differences of the displacement) keeps tiles rigid and a bending
term (second differences) keeps them smooth. Both act on displacements from the unturned tile, so
the section keeps scale 1 and does not turn. Weights are made robust by iterative reweighting
(Cauchy). Method and settings: measured prototypes; cf. S. Saalfeld et al., Nature Methods 2012.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from happyneurons.imaging.fits import apply_affine, fit_affine
from happyneurons.imaging.warp import GridWarp
from happyneurons.stages.montage.elastic import elastic_energy, normal_equations
from happyneurons.stages.montage.lens import Lens, contribution
from happyneurons.stages.montage.match import PairMatches
from happyneurons.stages.montage.shared_terms import Contribution
from happyneurons.stages.montage.tiles import Tile

Floats = NDArray[np.float64]

_MAX_NODES = 24
# Pairs that disagree with all others by more than this are wrong matches: px, and part of a tile's
# side, because distorted tiles do not close a loop by shifts alone.
_LOOP_TOLERANCE_PX = 12.0
_LOOP_TOLERANCE = 0.01
# Nodes are kept to 1/1024 px: rounding differences between processors do not reach the bytes.
_GRAIN = 1024.0
# Reweighting ends when no node moves by more than this (px), or after so many solves.
_SETTLED_PX = 0.01
_MOST_SOLVES = 4
# Stiffness of what all tiles bend alike (lens and scan distortion), in stiffnesses of a tile and divided
# by the number of seams: few seams cannot tell it from the bends of single tiles.
_LENS_STIFFNESS = 4.0


@dataclass(frozen=True)
class Placement:
    """A solved section. warps: tile px → nominal px (stage coordinates), in the order of the tiles.

    group: for each tile the number of the set of joined tiles it belongs to, 0 the largest.
    residuals_px: distance at every match of the pairs used.
    """

    warps: list[GridWarp]
    group: list[int]
    pairs: list[PairMatches]
    residuals_px: Floats


def place(
    tiles: Sequence[Tile],
    pairs: Sequence[PairMatches],
    *,
    node_spacing_px: float,
    membrane: float,
    bending: float,
    lens: Lens | None = None,
) -> Placement:
    """Place the tiles of a section.

    lens: what all tiles of this size bend alike, where it is known.
    The largest group of joined tiles keeps its mean nominal position. Tiles that nothing joins to it
    go where the stage says, corrected by the stage's error as the large group shows it.
    """
    nominal = np.array([[t.x_px, t.y_px] for t in tiles])
    longest = max(max(t.width, t.height) for t in tiles)
    start, used = _positions(nominal, pairs, max(_LOOP_TOLERANCE_PX, _LOOP_TOLERANCE * longest))
    if lens is not None and not (lens.used and lens.fits(tiles)):
        lens = None
    group = joined_groups(len(tiles), used)
    grids = [_grid(t.width, t.height, node_spacing_px) for t in tiles]
    warps, residuals = _elastic(grids, start, used, membrane, bending, lens)
    middles = np.array([[(t.width - 1) / 2, (t.height - 1) / 2] for t in tiles])
    solved = np.array([w.map(m[None])[0] - m for w, m in zip(warps, middles, strict=True)])
    main = np.array([g == 0 for g in group])
    placed = solved + (nominal[main] - solved[main]).mean(axis=0)
    # Few tiles tell only a shift of the stage; more of them its scale and rotation too.
    pitch_px2 = 4 * float((middles**2).mean())
    stage = fit_affine(nominal[main], placed[main], ridge=pitch_px2 * (0.1 if main.sum() >= 4 else 1e6))
    for g in range(max(group) + 1):
        members = np.flatnonzero(np.array(group) == g)
        goal = nominal[members] if g == 0 else apply_affine(stage, nominal[members])
        shift = (goal - solved[members]).mean(axis=0)
        for i in members:
            warps[i] = warps[i].with_nodes(np.rint((warps[i].nodes + shift) * _GRAIN) / _GRAIN)
    return Placement(warps, group, used, residuals)


def _positions(nominal: Floats, pairs: Sequence[PairMatches], tolerance_px: float) -> tuple[Floats, list[PairMatches]]:
    """Positions by translation only, (n, 2), and the pairs without those that contradict the others.

    Of the pairs that contradict, the one with the largest residual goes first, until all agree. A
    pair on which a tile hangs alone contradicts nobody.
    """
    kept = list(pairs)
    while True:
        n = len(nominal)
        rows = np.zeros((len(kept) + n, n))
        goals = np.zeros((len(kept) + n, 2))
        for k, p in enumerate(kept):
            offset = np.median(p.matches.xy_b - p.matches.xy_a, axis=0)
            weight = float(np.sqrt(p.matches.score.sum()))
            # A point at xy_a of tile a and xy_b of tile b: position b - position a = xy_a - xy_b.
            rows[k, p.b], rows[k, p.a] = weight, -weight
            goals[k] = -offset * weight
        rows[len(kept) :] = 1e-4 * np.eye(n)
        goals[len(kept) :] = 1e-4 * nominal
        positions = np.asarray(np.linalg.lstsq(rows, goals, rcond=None)[0], dtype=np.float64)
        if not kept:
            return positions, kept
        weights = np.abs(rows[: len(kept)]).max(axis=1)
        residual = np.linalg.norm(rows[: len(kept)] @ positions - goals[: len(kept)], axis=1) / weights
        worst = int(np.argmax(residual))
        if residual[worst] <= tolerance_px:
            return positions, kept
        # Least squares smears one wrong pair over its loop: the weakest of the bad ones is the culprit.
        bad = np.flatnonzero(residual > 0.5 * residual[worst])
        culprit = min(bad, key=lambda k: (float(kept[k].matches.score.sum()), int(k)))
        del kept[int(culprit)]


def joined_groups(n: int, pairs: Sequence[PairMatches]) -> list[int]:
    """Connected components of tiles, numbered by size (largest first), then by their first tile."""
    parent = list(range(n))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for p in pairs:
        a, b = sorted((root(p.a), root(p.b)))
        parent[b] = a
    roots = [root(i) for i in range(n)]
    order = sorted(set(roots), key=lambda r: (-roots.count(r), r))
    return [order.index(r) for r in roots]


@lru_cache(maxsize=64)
def _grid(width: int, height: int, spacing_px: float) -> GridWarp:
    """Identity with nodes over a tile; its last nodes may lie beyond the rim. Kept, as most tiles are of one size."""
    longest = max(width, height) - 1
    cells = int(np.clip(round(longest / spacing_px), 1, _MAX_NODES - 1))
    return GridWarp.identity(width - 1, height - 1, longest / cells)


def _elastic(
    grids: Sequence[GridWarp],
    start: Floats,
    pairs: Sequence[PairMatches],
    membrane: float,
    bending: float,
    lens: Lens | None,
) -> tuple[list[GridWarp], Floats]:
    """Warps from tile px to nominal px, and the residual at every match."""
    counts = [g.nodes.shape[0] * g.nodes.shape[1] for g in grids]
    first = np.concatenate([[0], np.cumsum(counts)])
    # A lens that many sections agree on leaves little that a single section could add to it.
    shared = lens is None and len({g.nodes.shape for g in grids}) == 1 and len({g.spacing_px for g in grids}) == 1
    displacement = np.zeros((int(first[-1]) + (counts[0] if shared else 0), 2))
    residuals = np.zeros(0)
    # A known lens is for tiles of one size: they all have the same grid.
    bend = None if lens is None else lens.displacement(grids[0].sources().reshape(-1, 2))
    if pairs:
        rows, goals, scores = _observations(grids, start, pairs, shared)
        if bend is not None:
            # On the nodes, as it will be drawn.
            goals = goals - rows @ np.tile(bend, (len(grids), 1))
        alike = _LENS_STIFFNESS / len(pairs) if shared else None
        energy = elastic_energy(tuple(g.nodes.shape[:2] for g in grids), membrane, bending, alike)
        robust = np.ones(len(scores))
        for _ in range(_MOST_SOLVES):
            before = displacement
            weighted, solver = normal_equations(rows, scores * robust, energy)
            displacement = solver.solve(np.asarray(weighted.T @ goals))
            residuals = np.linalg.norm(rows @ displacement - goals, axis=1)
            robust = 1 / (1 + residuals**2)
            if np.abs(displacement - before).max() <= _SETTLED_PX:
                break
    warps = []
    for i, g in enumerate(grids):
        moved = displacement[first[i] : first[i + 1]].reshape(g.nodes.shape)
        if shared:
            moved = moved + displacement[first[-1] :].reshape(g.nodes.shape)
        if bend is not None:
            moved = moved + bend.reshape(g.nodes.shape)
        warps.append(g.with_nodes(g.nodes + moved + start[i]))
    return warps, residuals


def lens_contribution(
    tiles: Sequence[Tile], placement: Placement, *, node_spacing_px: float, membrane: float, bending: float
) -> Contribution | None:
    """What a placed section's seams say about the lens; None if it has none, or tiles of several sizes."""
    sizes = {(t.width, t.height) for t in tiles}
    pairs = placement.pairs
    if len(sizes) != 1 or not pairs:
        return None
    grids = [_grid(t.width, t.height, node_spacing_px) for t in tiles]
    start = np.array([w.nodes[0, 0] for w in placement.warps])
    rows, goals, scores = _observations(grids, start, pairs, shared=False)
    energy = elastic_energy(tuple(g.nodes.shape[:2] for g in grids), membrane, bending, None)
    weights = scores / (1 + placement.residuals_px**2)
    return contribution(sizes.pop(), rows, goals, weights, energy, *_points(pairs))


def _points(pairs: Sequence[PairMatches]) -> tuple[Floats, Floats]:
    """(n, 2) px in the first and in the second tile of all matches, in the order of `_observations`."""
    return np.concatenate([p.matches.xy_a for p in pairs]), np.concatenate([p.matches.xy_b for p in pairs])


def _observations(
    grids: Sequence[GridWarp], start: Floats, pairs: Sequence[PairMatches], shared: bool
) -> tuple[sp.csr_matrix, Floats, Floats]:
    """One row a match: displacement at xy_a minus displacement at xy_b = goal, with its weight.

    shared: all grids are alike, and what they bend alike are unknowns of their own, after all others.
    """
    counts = [g.nodes.shape[0] * g.nodes.shape[1] for g in grids]
    first = np.concatenate([[0], np.cumsum(counts)])
    xy_a, xy_b = _points(pairs)
    lengths = [len(p.matches) for p in pairs]
    tile_a, tile_b = np.repeat([p.a for p in pairs], lengths), np.repeat([p.b for p in pairs], lengths)
    nodes_a, weights_a = _interpolation(grids, tile_a, xy_a)
    nodes_b, weights_b = _interpolation(grids, tile_b, xy_b)
    nodes = [nodes_a + first[tile_a, np.newaxis], nodes_b + first[tile_b, np.newaxis]]
    if shared:
        nodes += [nodes_a + first[-1], nodes_b + first[-1]]
    at = np.hstack(nodes)
    weight = np.hstack([weights_a, -weights_b] * (len(nodes) // 2))
    rows = sp.csr_matrix(
        (weight.ravel(), at.ravel(), np.arange(0, at.size + 1, at.shape[1])),
        shape=(len(at), int(first[-1]) + (counts[0] if shared else 0)),
    )
    goals = (xy_b + start[tile_b]) - (xy_a + start[tile_a])
    return rows, goals, np.concatenate([p.matches.score for p in pairs])


def _interpolation(grids: Sequence[GridWarp], tile: NDArray[np.int64], xy: Floats) -> tuple[NDArray[np.int64], Floats]:
    """(n, 4) numbers of the nodes around points (n, 2) of tiles (n,), each in its grid, and their bilinear weights."""
    ny, nx = np.array([g.nodes.shape[:2] for g in grids])[tile].T
    origin, spacing = np.array([g.origin_xy for g in grids])[tile], np.array([g.spacing_px for g in grids])[tile]
    cell = (xy - origin) / spacing[:, np.newaxis]
    i = np.clip(np.floor(cell[:, 0]), 0, nx - 2).astype(np.int64)
    j = np.clip(np.floor(cell[:, 1]), 0, ny - 2).astype(np.int64)
    fx, fy = cell[:, 0] - i, cell[:, 1] - j
    node = j * nx + i
    nodes = np.stack([node, node + 1, node + nx, node + nx + 1], axis=1)
    return nodes, np.stack([(1 - fx) * (1 - fy), fx * (1 - fy), (1 - fx) * fy, fx * fy], axis=1)
