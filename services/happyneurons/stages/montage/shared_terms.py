"""What all tiles of a stack have in common, told by the seams of many sections together.

Each section contributes the normal equations of the shared coefficients, with its own unknowns
eliminated: their sum over sections is solved once, and nothing has to hold more than one section.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from happyneurons.stages.montage.tiles import Tile

Floats = NDArray[np.float64]

# A coefficient is used if chance alone would make it so large in fewer stacks than this.
_LARGEST_CHANCE = 1e-3


@dataclass(frozen=True)
class OfTiles:
    """Something that is true of tiles of width × height px."""

    width: int
    height: int

    def fits(self, tiles: Iterable[Tile]) -> bool:
        """Whether all tiles are of that size."""
        return all((t.width, t.height) == (self.width, self.height) for t in tiles)


@dataclass(frozen=True)
class Contribution(OfTiles):
    """What the seams of one section say: normal (t, t), right (t,)."""

    normal: Floats
    right: Floats

    def data(self) -> dict[str, Any]:
        """As JSON wants it."""
        return {
            "size": [self.width, self.height],
            "normal": np.round(self.normal, 6).tolist(),
            "right": np.round(self.right, 6).tolist(),
        }


@dataclass(frozen=True)
class Agreement(OfTiles):
    """The coefficients (t,) that sections agree on; 0 where they do not."""

    coefficients: tuple[float, ...]


def agreement(contributions: Iterable[Mapping[str, Any]]) -> Agreement | None:
    """What sections agree on (`Contribution.data` each); None if they are too few to tell.

    Sections of tiles of another size than the first one's are left out. Coefficients that do not stand
    out from their standard error are 0. The error is that of the sections' disagreement ("sandwich",
    P. Huber 1967): what single sections have of their own, which the equations know nothing of, counts in it.
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
    normal, right = np.stack(normals), np.stack(rights)
    kept = np.zeros(right.shape[1])
    # Some coefficients nothing may have been said about: they stay 0.
    weight = np.diag(normal.sum(axis=0))
    told = np.flatnonzero(weight > 1e-6 * weight.max())
    if len(told):
        kept[told] = _significant(normal[:, told][:, :, told], right[:, told])
    return Agreement(size[0], size[1], tuple(float(c) for c in kept))


def _significant(normals: Floats, rights: Floats) -> Floats:
    """(t,) coefficients from the sections' (s, t, t) and (s, t) equations; 0 where they may be chance."""
    normal = normals.sum(axis=0)
    if not np.linalg.cond(normal) < 1e9:
        return np.zeros(len(normal))
    solution = np.linalg.solve(normal, rights.sum(axis=0))
    apart = rights - np.einsum("sij,j->si", normals, solution)
    inverse = np.linalg.inv(normal)
    variance = inverse @ np.einsum("si,sj->ij", apart, apart) @ inverse * len(apart) / (len(apart) - 1)
    least = float(stdtrit(len(apart) - 1, 1 - _LARGEST_CHANCE / 2))
    return np.where(np.abs(solution) > least * np.sqrt(np.diag(variance)), np.round(solution, 4), 0.0)
