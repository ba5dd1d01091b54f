"""The distortion of the microscope's own optics, which all tiles of all sections share.

Seams show a tile's rim only. What a single section's seams cannot tell, the seams of many sections
can: one distortion for all of them, of the two forms that a round lens makes at third order, radial
(barrel or pincushion, displacement ∝ r² · (x, y)) and spiral (∝ r² · (−y, x)); cf. P. W. Hawkes and
E. Kasper, Principles of Electron Optics, vol. 1, "Distortion". As their form is known, they are known
inside of the tile as well. Scan errors and the bends of single tiles are left to the elastic solve.

Each section contributes the normal equations of the terms, with the displacements of its own tiles
eliminated: their sum over sections is solved once, and nothing has to hold more than one section.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike, NDArray
from scipy.sparse.linalg import splu
from scipy.special import stdtrit

Floats = NDArray[np.float64]

TERMS = ("radial_px", "spiral_px")
# A term is used if chance alone would make it so large in fewer stacks than this.
_LARGEST_CHANCE = 1e-3
# Points a side over which the terms are made free of an affine map, which tiles have anyway.
_SAMPLES = 33


@dataclass(frozen=True)
class Lens:
    """Displacement of the px of tiles of width × height px: coefficients (of TERMS) in px at half the longer side."""

    width: int
    height: int
    coefficients: tuple[float, ...]

    @property
    def used(self) -> bool:
        return any(self.coefficients)

    def displacement(self, xy: ArrayLike) -> Floats:
        """(n, 2) px that tile px (n, 2) have to move by."""
        return np.asarray(np.einsum("t,tnk->nk", self.coefficients, terms(self.width, self.height, xy)))

    def figures(self) -> dict[str, float]:
        """Its coefficients by name."""
        return {f"lens_{name}": value for name, value in zip(TERMS, self.coefficients, strict=True)}

    def fits(self, tiles: Iterable[Any]) -> bool:
        """Whether all tiles are of the size that it was found for."""
        return all((t.width, t.height) == (self.width, self.height) for t in tiles)


def terms(width: int, height: int, xy: ArrayLike) -> Floats:
    """(terms, n, 2) displacements at tile px (n, 2), without their best affine map over the tile."""
    half, middle = (max(width, height) - 1) / 2, np.array([(width - 1) / 2, (height - 1) / 2])
    x, y = np.linspace(0, width - 1, _SAMPLES), np.linspace(0, height - 1, _SAMPLES)
    samples = _raw((np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2) - middle) / half)
    p = (np.asarray(xy, dtype=np.float64).reshape(-1, 2) - middle) / half
    # By symmetry the affine map has no constant; what is left is linear in x and y.
    linear = np.einsum("ni,tnk->tik", samples[0], samples[1:]) / np.square(samples[0]).sum(axis=0)[:, np.newaxis]
    raw = _raw(p)
    return np.asarray(raw[1:] - np.einsum("ni,tik->tnk", raw[0], linear))


def _raw(p: Floats) -> Floats:
    """(1 + terms, n, 2): the coordinates themselves, then the terms at them."""
    square = np.square(p).sum(axis=1, keepdims=True)
    turned = np.stack([-p[:, 1], p[:, 0]], axis=1)
    return np.stack([p, square * p, square * turned])


@dataclass(frozen=True)
class Contribution:
    """What the seams of one section say about the terms.

    normal (t, t), right (t,): normal equations of the terms' coefficients.
    """

    width: int
    height: int
    normal: Floats
    right: Floats

    def data(self) -> dict[str, Any]:
        """As JSON wants it."""
        return {
            "size": [self.width, self.height],
            "normal": np.round(self.normal, 6).tolist(),
            "right": np.round(self.right, 6).tolist(),
        }


def contribution(
    size: tuple[int, int], rows: sp.csr_matrix, goals: Floats, weights: Floats, stiffness: sp.csr_matrix,
    at_a: Floats, at_b: Floats,
) -> Contribution:  # fmt: skip
    """Normal equations of the terms with a section's own displacements eliminated.

    rows (n, unknowns): the tiles' displacements at each match, a − b = goals (n, 2); weights (n,);
    stiffness (unknowns, unknowns): the tiles' elastic energy. at_a, at_b (n, 2): tile px of each match.
    """
    weighted = sp.csr_matrix(sp.diags(weights) @ rows)
    solver = splu((rows.T @ weighted + stiffness).tocsc())
    shared = terms(*size, at_a) - terms(*size, at_b)
    count = len(shared)
    normal, right = np.zeros((count, count)), np.zeros(count)
    for axis in (0, 1):
        # What is left of terms and goals when tiles move as they like, and pay for it.
        columns = np.column_stack([shared[:, :, axis].T, goals[:, axis]])
        moved = solver.solve(np.asarray(weighted.T @ columns))
        products = np.einsum("n,ni,nj->ij", weights, columns, columns) - np.einsum(
            "ui,uj->ij", np.asarray(weighted.T @ columns), moved
        )
        normal += products[:count, :count]
        right += products[:count, count]
    return Contribution(*size, normal, right)


def solve_lens(contributions: Iterable[Mapping[str, Any]]) -> Lens | None:
    """The lens that sections agree on (`Contribution.data` each); None if they are too few to tell.

    Sections of tiles of another size than the first one's are left out. Terms that do not stand out
    from their standard error are 0. The error is that of the sections' disagreement ("sandwich", P. Huber
    1967): bends of single tiles, which the equations know nothing of, count in it.
    """
    normals, rights = [], []
    size: list[int] | None = None
    for data in contributions:
        size = size or data["size"]
        if data["size"] == size:
            normals.append(np.array(data["normal"]))
            rights.append(np.array(data["right"]))
    if size is None or len(normals) < 2:
        return None
    normal, right = sum(normals, np.zeros((len(TERMS),) * 2)), sum(rights, np.zeros(len(TERMS)))
    if np.linalg.cond(normal) > 1e9:
        return None
    solution = np.linalg.solve(normal, right)
    apart = np.stack([r - n @ solution for n, r in zip(normals, rights, strict=True)])
    inverse = np.linalg.inv(normal)
    variance = inverse @ np.einsum("si,sj->ij", apart, apart) @ inverse * len(apart) / (len(apart) - 1)
    least = float(stdtrit(len(apart) - 1, 1 - _LARGEST_CHANCE / 2))
    kept = np.where(np.abs(solution) > least * np.sqrt(np.diag(variance)), np.round(solution, 4), 0.0)
    return Lens(size[0], size[1], tuple(float(c) for c in kept))
