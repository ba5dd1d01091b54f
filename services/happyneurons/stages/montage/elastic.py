"""The elastic energy of tiles' grids, and the linear system that sets it against matches.

Unknown are the displacements of all nodes of all tiles, x and y alike: two right sides of one matrix.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.sparse.linalg import SuperLU, splu

Floats = NDArray[np.float64]


def normal_equations(rows: sp.csr_matrix, weights: Floats, energy: sp.csc_matrix) -> tuple[sp.csr_matrix, SuperLU]:
    """(rows times their weights, factors of the normal matrix of the rows and the energy).

    rows (n, unknowns): displacements at each match; weights (n,); energy (unknowns, unknowns).
    """
    data = rows.data * np.repeat(weights, np.diff(rows.indptr))
    weighted = sp.csr_matrix((data, rows.indices, rows.indptr), shape=rows.shape)
    matrix = sp.csc_matrix(rows.T @ weighted + energy)
    # It is symmetric and positive: without pivoting and with an ordering for such matrices, factoring takes two
    # thirds of the time for 200 unknowns, a quarter for 6000.
    factors = splu(matrix, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
    return weighted, factors


@lru_cache(maxsize=8)
def elastic_energy(
    shapes: tuple[tuple[int, int], ...], membrane: float, bending: float, alike: float | None
) -> sp.csc_matrix:
    """Elastic energy of tiles with grids of those shapes (ny, nx), as a quadratic form of their displacements.

    alike: stiffness of what all tiles bend alike, in stiffnesses of a tile; None: that is no unknown.
    Kept, as most sections have tiles of the same sizes: not to be changed.
    """
    stiffness = [_stiffness(*shape, membrane, bending) for shape in shapes]
    if alike is not None:
        stiffness.append(np.sqrt(alike) * stiffness[0])
    rows = sp.block_diag(stiffness, format="csr")
    return sp.csc_matrix(rows.T @ rows)


@lru_cache(maxsize=64)
def _stiffness(ny: int, nx: int, membrane: float, bending: float) -> sp.csr_matrix:
    """Rows whose squares are the elastic energy of a tile: membrane, bending, and a trace of an anchor.

    Kept, as most tiles are of one size: not to be changed.
    """
    ix, iy = sp.identity(nx), sp.identity(ny)
    dx, dy = _difference(nx, 1), _difference(ny, 1)
    rows = [
        np.sqrt(membrane) * sp.kron(iy, dx),
        np.sqrt(membrane) * sp.kron(dy, ix),
        np.sqrt(2 * bending) * sp.kron(dy, dx),
        1e-3 * sp.identity(nx * ny),
    ]
    if nx > 2:
        rows.append(np.sqrt(bending) * sp.kron(iy, _difference(nx, 2)))
    if ny > 2:
        rows.append(np.sqrt(bending) * sp.kron(_difference(ny, 2), ix))
    return sp.csr_matrix(sp.vstack(rows))


def _difference(n: int, order: int) -> sp.csr_matrix:
    """(n - order, n) finite differences."""
    matrix = sp.csr_matrix(sp.identity(n))
    for _ in range(order):
        matrix = sp.csr_matrix(matrix[1:] - matrix[:-1])
    return matrix
