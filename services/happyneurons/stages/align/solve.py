"""Where every section goes: one sparse least-squares problem over all correspondences.

Two things move tissue from one section to the next: the distortion of each section, which is to be
undone, and the tissue itself, because neurites run obliquely, which is not. Setting neighbours on
top of each other undoes both and straightens what is oblique (the "banana" problem). Here both are
unknowns: for corresponding points p in section a and q in section b,

    T_b(q) − T_a(p) = sum of the tissue's drift V between a and b,    T_z = identity + U_z

with a prior for each: distortions U are independent from section to section, have a size estimated
from the data and are smooth over a range (a Gaussian field with precision (κ² − Δ)², after Lindgren,
Rue and Lindström 2011); the drift V is as smooth, and persists over some distance in z (first-order
autoregressive). Both keep the stack's scale and place: nothing gains by shrinking or wandering off.

First U and V are affine, then they live on the nodes of a grid. Each is solved by reweighted least
squares (Cauchy weights), so that wrong correspondences lose their say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from happyneurons.stages.align.system import Basis, Doubles, NodeGrid, Pair, System

# A pair's correspondences say as much about its affine map as this many independent ones would.
_INDEPENDENT_POINTS = 12.0


@dataclass(frozen=True)
class SolveSettings:
    """Lengths in px of a section, rates in px per section."""

    node_spacing_px: float
    distortion_range_px: float
    """Distance at which two places of a section are distorted almost independently."""
    drift_px: float
    """Typical (rms) movement of tissue from one section to the next."""
    drift_range_px: float
    """The same distance for the tissue's movement."""
    drift_persistence: float
    """Correlation of the tissue's movement with that one section further."""
    noise_px: float = 0.15
    """Error of a correspondence, beyond what moves smoothly."""
    distortion_px: float | None = None
    """Typical (rms) elastic distortion of a section; None: estimated."""


@dataclass(frozen=True)
class Solution:
    """T_z(p) = matrices[z] applied to p + shifts[z] interpolated at p, for the k good sections."""

    matrices: Doubles
    """(k, 2, 3)"""
    shifts: Doubles
    """(k, ny, nx, 2), node [j, i] at (i, j) · node_spacing_px."""
    jitter_px: float
    distortion_px: float

    def nodes(self, k: int, spacing_px: float) -> Doubles:
        """(ny, nx, 2) targets of the nodes of section k."""
        ny, nx = self.shifts.shape[1:3]
        points = np.stack(np.meshgrid(np.arange(nx) * spacing_px, np.arange(ny) * spacing_px), axis=-1)
        return np.asarray(apply(self.matrices[k], points) + self.shifts[k])


def apply(matrix: Doubles, points: Doubles) -> Doubles:
    """(2, 3) affine map of (..., 2) points; plain arithmetic, the same bits with any number of threads."""
    x, y = points[..., 0], points[..., 1]
    return np.stack([m[0] * x + m[1] * y + m[2] for m in matrix], axis=-1)


def solve(
    pairs: Sequence[Pair],
    z: Sequence[int],
    width: int,
    height: int,
    settings: SolveSettings,
    weak: Sequence[Doubles | None] | None = None,
) -> Solution:
    """Place all good sections.

    z: their section numbers, ascending; width, height of a section. weak[k]: None or (ny, nx)
    stiffness 0..1 of section k at each node, low where tissue is torn or covered.
    """
    k = len(z)
    gaps = np.diff(np.asarray(z, dtype=np.float64))
    grid = NodeGrid(width, height, settings.node_spacing_px)
    if not pairs:
        return Solution(_identities(k), np.zeros((k, *grid.shape, 2)), 0.0, 0.0)
    matrices, jitter = solve_affine(pairs, gaps, width, height, settings)
    shifts, distortion = solve_elastic(pairs, gaps, matrices, grid, settings, weak)
    return centred(Solution(matrices, shifts, jitter, distortion), grid)


def centred(solution: Solution, grid: NodeGrid) -> Solution:
    """The same solution under the affine map that makes the sections' mean map the identity.

    Distortions have mean zero, so this is the best guess of the true frame; and it keeps the scale
    at exactly 1, which least squares with noise in its points would shrink a little.
    """
    spacing = grid.spacing_px
    ny, nx = grid.shape
    points = np.stack(np.meshgrid(np.arange(nx) * spacing, np.arange(ny) * spacing), axis=-1).reshape(-1, 2)
    count = len(solution.matrices)
    mean = sum((solution.nodes(k, spacing) for k in range(count)), np.zeros((ny, nx, 2))).reshape(-1, 2) / count
    design = np.column_stack([points, np.ones(len(points))])
    fit = np.linalg.solve(np.einsum("ni,nj->ij", design, design), np.einsum("ni,nj->ij", design, mean))
    back = np.linalg.inv(fit[:2].T)
    matrices = np.einsum("ij,kjl->kil", back, solution.matrices)
    matrices[:, :, 2] -= back @ fit[2]
    shifts = np.einsum("ij,kyxj->kyxi", back, solution.shifts)
    return Solution(matrices, shifts, solution.jitter_px, solution.distortion_px)


# --- affine --------------------------------------------------------------------------------------


def solve_affine(
    pairs: Sequence[Pair], gaps: Doubles, width: int, height: int, settings: SolveSettings
) -> tuple[Doubles, float]:
    """(k, 2, 3) affine maps of k sections, gaps (k - 1,) apart, and the rms of their shifts (px)."""
    centre = np.array([(width - 1) / 2, (height - 1) / 2])
    half = max(width, height) / 2

    def basis(points: Doubles) -> Any:
        scaled = (points - centre) / half
        return sp.csr_matrix(np.column_stack([np.ones(len(points)), scaled]))

    fits = {(pair.a, pair.b): _pair_affine(pair, basis) for pair in pairs}
    drift = settings.drift_px * np.array([1.0, 0.5, 0.5])
    jitter = np.maximum(_estimate_jitter({key: fit[0] for key, fit in fits.items()}, gaps, drift), [0.2, 0.1, 0.1])
    residual = float(np.median([fit[1] for fit in fits.values()]))
    system = System(pairs, gaps, basis)
    prior_u = sp.block_diag([sp.diags(1 / jitter**2)] * (len(gaps) + 1))
    prior_v = sp.diags(1 / drift**2)
    counts = np.concatenate([np.full(len(p.weight), float(len(p.weight))) for p in pairs])
    weight = system.weight * min(1.0, _INDEPENDENT_POINTS / float(counts.min())) * counts.min() / counts
    scale = max(residual, settings.noise_px)
    u = system.solve(prior_u, prior_v, settings.drift_persistence, weight, scale, system.offset, exact=True)
    matrices = _identities(len(gaps) + 1)
    matrices[:, :, :2] += np.swapaxes(u[:, 1:], 1, 2) / half
    matrices[:, :, 2] += u[:, 0] - np.einsum("kij,j->ki", matrices[:, :, :2] - np.eye(2), centre)
    return matrices, float(jitter[0])


def _estimate_jitter(fits: Mapping[tuple[int, int], Doubles], gaps: Doubles, drift: Doubles) -> Doubles:
    """rms of each affine coefficient of the sections' own distortions, (3,), from the pairs' (3, 2) fits.

    Second differences along z leave independent distortions and remove what persists; in a short
    stack there are too few of them, so that the first differences, less the expected drift, count too.
    """
    series = {a: fits[a, a + 1] for a in range(len(gaps)) if (a, a + 1) in fits}
    first = np.array([np.mean(np.square(f), axis=1) - (gaps[a] * drift) ** 2 for a, f in series.items()])
    second = np.array([np.mean(np.square(series[a + 1] - series[a]), axis=1) for a in series if a + 1 in series])
    variance = np.zeros(3)
    if len(first):
        variance = first.mean(axis=0) / 2
    if len(second):
        variance = np.maximum(variance, second.mean(axis=0) / 6)
    return np.asarray(np.sqrt(np.maximum(variance, 0)))


def _pair_affine(pair: Pair, basis: Basis) -> tuple[Doubles, float]:
    """Robust affine fit of a pair's displacement: (3, 2) coefficients and the rms of what is left."""
    design = basis(pair.a_xy).toarray()
    moved = pair.b_xy - pair.a_xy
    weight = pair.weight
    fit = np.zeros((3, 2))
    scale = 1.0
    for _ in range(5):
        weighted = design * weight[:, None]
        normal = np.einsum("ni,nj->ij", weighted, design) + 1e-9 * np.eye(3)
        fit = np.linalg.solve(normal, np.einsum("ni,nj->ij", weighted, moved))
        miss = np.linalg.norm(moved - np.einsum("ni,ij->nj", design, fit), axis=1)
        scale = max(0.05, float(np.median(miss)))
        weight = pair.weight / (1 + (miss / (3 * scale)) ** 2)
    return fit, scale


# --- elastic -------------------------------------------------------------------------------------


def solve_elastic(
    pairs: Sequence[Pair],
    gaps: Doubles,
    matrices: Doubles,
    grid: NodeGrid,
    settings: SolveSettings,
    weak: Sequence[Doubles | None] | None,
) -> tuple[Doubles, float]:
    """(k, ny, nx, 2) shifts of the nodes beyond given affine maps, and the rms of elastic distortion (px)."""
    count = len(gaps) + 1
    system = System(pairs, gaps, grid.basis)
    offset = np.concatenate([apply(matrices[p.b], p.b_xy) - apply(matrices[p.a], p.a_xy) for p in pairs])
    distortion = settings.distortion_px or _estimate_distortion(pairs, offset, grid)
    plain = grid.precision(distortion, settings.distortion_range_px)
    stiff = weak or [None] * count
    prior_u = sp.block_diag(
        [plain if s is None else grid.precision(distortion, settings.distortion_range_px, s) for s in stiff]
    )
    prior_v = grid.precision(settings.drift_px, settings.drift_range_px)
    u = system.solve(prior_u, prior_v, settings.drift_persistence, system.weight, settings.noise_px, offset)
    return u.reshape(count, *grid.shape, 2), distortion


def _estimate_distortion(pairs: Sequence[Pair], offset: Doubles, grid: NodeGrid) -> float:
    """rms of the elastic distortion of a section, from second differences along z at the grid's cells."""
    ny, nx = grid.shape
    fields: dict[int, Doubles] = {}
    start = 0
    for pair in pairs:
        moved = offset[start : start + len(pair.weight)]
        start += len(pair.weight)
        if pair.b != pair.a + 1:
            continue
        cell = np.clip((pair.a_xy / grid.spacing_px).astype(np.int64), 0, [nx - 2, ny - 2])
        flat = cell[:, 1] * nx + cell[:, 0]
        number = np.bincount(flat, minlength=ny * nx).astype(np.float64)
        sums = np.stack([np.bincount(flat, moved[:, c], minlength=ny * nx) for c in (0, 1)], axis=1)
        fields[pair.a] = np.where(number[:, None] > 0, sums / np.maximum(number, 1)[:, None], np.nan)
    steps = [fields[a + 1] - fields[a] for a in sorted(fields) if a + 1 in fields]
    if steps:
        values, divisor = np.abs(np.stack(steps)), np.sqrt(6.0)
    else:
        values, divisor = np.abs(np.stack(list(fields.values()) or [offset])), np.sqrt(2.0)
    values = values[np.isfinite(values)]
    typical = 1.4826 * float(np.median(values)) / divisor if len(values) else 0.0
    return max(0.15, typical)


def _identities(k: int) -> Doubles:
    return np.tile(np.eye(2, 3), (k, 1, 1))
