"""The sparse least-squares problem that `solve` sets up: unknowns, priors, and how it is solved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.sparse.linalg import splu

Doubles = NDArray[np.float64]


class Basis(Protocol):
    """What maps are made of."""

    @property
    def count(self) -> int:
        """Number of coefficients."""

    def basis(self, points: Doubles) -> Any:
        """(n, 2) points → (rows, count) sparse matrix: values at the points of the map with given coefficients."""

    def coarse(self) -> Any:
        """(count, fewer) coefficients of smooth maps, which alone couple many sections."""


@dataclass(frozen=True)
class Pair:
    """Corresponding points of the sections at positions a < b of the list of good sections."""

    a: int
    b: int
    a_xy: Doubles
    b_xy: Doubles
    weight: Doubles


class NodeGrid:
    """Nodes at (i, j) · spacing that cover a section of width × height px."""

    def __init__(self, width: int, height: int, spacing_px: float) -> None:
        self.spacing_px = spacing_px
        self.shape = tuple(max(2, int(np.ceil((n - 1) / spacing_px)) + 1) for n in (height, width))
        self.count = self.shape[0] * self.shape[1]

    def basis(self, points: Doubles) -> Any:
        """Bilinear interpolation at (n, 2) points as (n, nodes) matrix."""
        ny, nx = self.shape
        place = points / self.spacing_px
        i = np.clip(np.floor(place[:, 0]).astype(np.int64), 0, nx - 2)
        j = np.clip(np.floor(place[:, 1]).astype(np.int64), 0, ny - 2)
        fx, fy = np.clip(place[:, 0] - i, 0, 1), np.clip(place[:, 1] - j, 0, 1)
        columns = np.stack([j * nx + i, j * nx + i + 1, (j + 1) * nx + i, (j + 1) * nx + i + 1], axis=1)
        values = np.stack([(1 - fx) * (1 - fy), fx * (1 - fy), (1 - fx) * fy, fx * fy], axis=1)
        rows = np.arange(0, 4 * len(points) + 1, 4)
        return sp.csr_matrix((values.ravel(), columns.ravel(), rows), shape=(len(points), self.count))

    def coarse(self) -> Any:
        """(nodes, fewer nodes): what a grid of four times the spacing, or ten cells or so, says at the nodes."""
        ny, nx = self.shape
        factor = max(4, -(-max(ny, nx) // 10))
        nodes = np.stack(np.meshgrid(np.arange(nx), np.arange(ny)), axis=-1).reshape(-1, 2).astype(np.float64)
        return NodeGrid(nx, ny, float(factor)).basis(nodes)

    def precision(self, rms_px: float, range_px: float, stiffness: Doubles | None = None) -> Any:
        """Precision matrix of a smooth random field of that size and range (Matérn, ν = 1).

        stiffness (ny, nx), 0..1: the field may jump where it is low.
        """
        ny, nx = self.shape
        index = np.arange(self.count).reshape(ny, nx)
        first = np.concatenate([index[:, :-1].ravel(), index[:-1].ravel()])
        second = np.concatenate([index[:, 1:].ravel(), index[1:].ravel()])
        flat = None if stiffness is None else stiffness.ravel()
        return smooth_field_precision(self.count, first, second, self.spacing_px, rms_px, range_px, flat)


def smooth_field_precision(
    count: int, first: NDArray[Any], second: NDArray[Any], spacing_px: float, rms_px: float, range_px: float,
    stiffness: Doubles | None,
) -> Any:  # fmt: skip
    """(count, count) precision matrix of a smooth random field (Matérn, ν = 1) on nodes `spacing_px` apart.

    first, second (m,): nodes that are neighbours. stiffness (count,), 0..1, as in `NodeGrid.precision`.
    """
    tie = np.ones(len(first)) if stiffness is None else np.minimum(stiffness[first], stiffness[second])
    rows = np.concatenate([first, second, first, second])
    columns = np.concatenate([second, first, first, second])
    values = np.concatenate([-tie, -tie, tie, tie])
    laplacian = sp.csr_matrix((values, (rows, columns)), shape=(count, count))
    kappa_squared = 8.0 * (spacing_px / range_px) ** 2
    factor = sp.identity(count) * kappa_squared + laplacian
    return sp.csr_matrix(factor @ factor / (4 * np.pi * kappa_squared * rms_px**2))


class System:
    """Unknowns: coefficients of U for k sections, then of V for the k − 1 intervals between them."""

    def __init__(self, pairs: Sequence[Pair], gaps: Doubles, sections: Sequence[Basis], between: Basis) -> None:
        """sections: what U is made of in each; between: what all V are."""
        self.gaps = gaps
        self.bases = [*sections, *[between] * len(gaps)]
        self.starts = np.concatenate([[0], np.cumsum([basis.count for basis in self.bases])])
        k = len(sections)
        rows = []
        for pair in pairs:
            at_a, at_b = sections[pair.a].basis(pair.a_xy), sections[pair.b].basis(pair.b_xy)
            moved = at_a if sections[pair.a] is between else between.basis(pair.a_xy)
            blocks: dict[int, Any] = {pair.a: -at_a, pair.b: at_b}
            blocks |= {k + i: -gaps[i] * moved for i in range(pair.a, pair.b)}
            rows.append(_block_row(blocks, self.starts))
        self.design = sp.vstack(rows).tocsr()
        self.weight = np.concatenate([p.weight / (p.b - p.a) for p in pairs])
        self.offset = np.concatenate([p.b_xy - p.a_xy for p in pairs])

    def solve(
        self, prior_u: Any, prior_v: Any, persistence: float, weight: Doubles, noise_px: float,
        offset: Doubles, exact: bool = False,
    ) -> tuple[list[Doubles], list[Doubles]]:  # fmt: skip
        """(coefficients, c) of k U and of k − 1 V. offset (rows, c): T_b(q) − T_a(p) with U = 0."""
        prior = sp.block_diag([prior_u, sp.kron(_autoregressive(self.gaps, persistence), prior_v)]).tocsc()
        design, transposed = self.design, self.design.T.tocsr()
        x = np.zeros((design.shape[1], offset.shape[1]))
        robust = np.ones(len(weight))
        for goal in (1e-6, 1e-6, 1e-6, 1e-10):
            w = weight * robust / noise_px**2
            normal = (transposed @ sp.diags(w) @ design + prior).tocsc()
            right = -(transposed @ (w[:, None] * offset))
            x = splu(normal).solve(right) if exact else self._conjugate_gradient(normal, right, x, goal)
            miss = np.linalg.norm(offset + design @ x, axis=1)
            scale = max(2 * noise_px, 3 * float(np.median(miss)))
            robust = 1 / (1 + (miss / scale) ** 2)
        found = [x[a:b] for a, b in pairwise(self.starts)]
        return found[: len(self.gaps) + 1], found[len(self.gaps) + 1 :]

    @cached_property
    def _spread(self) -> Any:
        """From coefficients of coarse maps to those of all maps.

        The coarse ones along z, intervals between their sections: in this order they couple with near ones only.
        """
        coarse = [basis.coarse() for basis in self.bases]
        maps, ends = sp.block_diag(coarse, format="csc"), np.cumsum([c.shape[1] for c in coarse])
        sections = len(self.gaps) + 1
        along_z = [block for z in range(sections) for block in (z, sections + z)][:-1]
        columns = [np.arange(ends[b - 1] if b else 0, ends[b]) for b in along_z]
        return maps[:, np.concatenate(columns)].tocsr()

    def _conjugate_gradient(self, normal: Any, right: Doubles, start: Doubles, goal: float) -> Doubles:
        """All right-hand sides at once; without BLAS: the same bits with any number of threads.

        Preconditioned by the blocks of single sections and intervals, which know nothing of each
        other, plus the problem of the coarse maps of all of them, solved at once.
        """
        blocks = [normal[a:b, a:b] for a, b in pairwise(self.starts)]
        matrix = normal.tocsr()
        single = _factorized(sp.block_diag(blocks))
        spread = self._spread
        gather = spread.T.tocsr()
        together = _factorized(gather @ matrix @ spread, "NATURAL")

        def precondition(r: Doubles) -> Doubles:
            return np.asarray(single.solve(r) + spread @ together.solve(gather @ r))

        x = start.copy()
        r = right - matrix @ x
        y = precondition(r)
        p = y.copy()
        ry = _dot(r, y)
        limit = goal * np.maximum(_dot(right, precondition(right)), 1e-30)
        for _ in range(2000):
            if (ry <= limit).all():
                break
            ap = matrix @ p
            step = ry / np.maximum(_dot(p, ap), 1e-300)
            x += step * p
            r -= step * ap
            y = precondition(r)
            before, ry = ry, _dot(r, y)
            p = y + (ry / np.maximum(before, 1e-300)) * p
        return x


def _factorized(matrix: Any, order: str = "MMD_AT_PLUS_A") -> Any:
    """Of a symmetric positive matrix, which needs no pivoting."""
    return splu(matrix.tocsc(), permc_spec=order, diag_pivot_thresh=0.0, options={"SymmetricMode": True})


def _dot(a: Doubles, b: Doubles) -> Doubles:
    """Products of the columns of two (n, c) arrays; a plain loop in C, unlike BLAS or a reduction over rows."""
    return np.asarray(np.einsum("ij,ij->j", a, b))


def _block_row(blocks: dict[int, Any], starts: NDArray[np.int64]) -> Any:
    """Blocks of columns, placed by index: block i begins at column starts[i]."""
    parts = []
    for index, block in blocks.items():
        coo = block.tocoo()
        parts.append((coo.data, coo.row, coo.col + starts[index]))
    data, rows, columns = (np.concatenate(x) for x in zip(*parts, strict=True))
    height = next(iter(blocks.values())).shape[0]
    return sp.csr_matrix((data, (rows, columns)), shape=(height, starts[-1]))


def _autoregressive(gaps: Doubles, persistence: float) -> Any:
    """Precision of a first-order autoregressive series of unit variance, one value an interval."""
    n = len(gaps)
    if n == 1:
        return sp.identity(1, format="csr")
    rho = persistence ** ((gaps[1:] + gaps[:-1]) / 2)
    diagonal = np.ones(n)
    diagonal[1:] += rho**2 / (1 - rho**2)
    diagonal[:-1] += rho**2 / (1 - rho**2)
    side = -rho / (1 - rho**2)
    return sp.diags([side, diagonal, side], [-1, 0, 1]).tocsr()
