"""The distortion of the microscope's own optics, which all tiles of all sections share.

Seams show a tile's rim only. What a single section's seams cannot tell, the seams of many sections
can: one distortion for all of them, of the two forms that a round lens makes at third order, radial
(barrel or pincushion, displacement ∝ r² · (x, y)) and spiral (∝ r² · (−y, x)); cf. P. W. Hawkes and
E. Kasper, Principles of Electron Optics, vol. 1, "Distortion". As their form is known, they are known
inside of the tile as well. Scan errors and the bends of single tiles are left to the elastic solve.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike, NDArray

from happyneurons.stages.montage.elastic import normal_equations
from happyneurons.stages.montage.shared_terms import Contribution, OfTiles, agreement

Floats = NDArray[np.float64]

TERMS = ("radial_px", "spiral_px")
# Points a side over which the terms are made free of an affine map, which tiles have anyway.
_SAMPLES = 33


@dataclass(frozen=True)
class Lens(OfTiles):
    """Displacement of the px of tiles: coefficients (of TERMS) in px at half the longer side."""

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


def terms(width: int, height: int, xy: ArrayLike) -> Floats:
    """(terms, n, 2) displacements at tile px (n, 2), without their best affine map over the tile."""
    half, middle = (max(width, height) - 1) / 2, np.array([(width - 1) / 2, (height - 1) / 2])
    raw = _raw((np.asarray(xy, dtype=np.float64).reshape(-1, 2) - middle) / half)
    return np.asarray(raw[1:] - np.einsum("ni,tik->tnk", raw[0], _affine_part(width, height)))


@lru_cache(maxsize=16)
def _affine_part(width: int, height: int) -> Floats:
    """(terms, 2, 2) best linear maps of the terms over a tile; by symmetry they have no constant.

    Kept, as most tiles are of one size: not to be changed.
    """
    half = (max(width, height) - 1) / 2
    x, y = np.linspace(1 - width, width - 1, _SAMPLES) / 2, np.linspace(1 - height, height - 1, _SAMPLES) / 2
    samples = _raw(np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2) / half)
    products = np.einsum("ni,tnk->tik", samples[0], samples[1:])
    return np.asarray(products / np.square(samples[0]).sum(axis=0)[:, np.newaxis])


def _raw(p: Floats) -> Floats:
    """(1 + terms, n, 2): the coordinates themselves, then the terms at them."""
    square = np.square(p).sum(axis=1, keepdims=True)
    turned = np.stack([-p[:, 1], p[:, 0]], axis=1)
    return np.stack([p, square * p, square * turned])


def contribution(
    size: tuple[int, int], rows: sp.csr_matrix, goals: Floats, weights: Floats, energy: sp.csc_matrix,
    at_a: Floats, at_b: Floats,
) -> Contribution:  # fmt: skip
    """Normal equations of the terms with a section's own displacements eliminated.

    rows (n, unknowns): the tiles' displacements at each match, a − b = goals (n, 2); weights (n,);
    energy (unknowns, unknowns): the tiles' elastic energy. at_a, at_b (n, 2): tile px of each match.
    """
    weighted, solver = normal_equations(rows, weights, energy)
    shared = terms(*size, at_a) - terms(*size, at_b)
    count = len(shared)
    normal, right = np.zeros((count, count)), np.zeros(count)
    for axis in (0, 1):
        # What is left of terms and goals when tiles move as they like, and pay for it.
        columns = np.column_stack([shared[:, :, axis].T, goals[:, axis]])
        pull = np.asarray(weighted.T @ columns)
        products = np.einsum("n,ni,nj->ij", weights, columns, columns) - np.einsum(
            "ui,uj->ij", pull, solver.solve(pull)
        )
        normal += products[:count, :count]
        right += products[:count, count]
    return Contribution(*size, normal, right)


def solve_lens(contributions: Iterable[Mapping[str, Any]]) -> Lens | None:
    """The lens that sections agree on (`Contribution.data` each); None if they are too few to tell."""
    agreed = agreement(contributions)
    return None if agreed is None else Lens(agreed.width, agreed.height, agreed.coefficients)
