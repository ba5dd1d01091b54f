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

First U and V are affine, then they live on the nodes of a grid and are about what is left. Each is solved
by reweighted least squares (Cauchy weights), so that wrong correspondences lose their say. Affine U
has four sizes of its own, each estimated: sections are shifted and turned by much, shrunk by less and
sheared by little, so that shear and growth that persist are told to be the tissue's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from happyneurons.stages.align.cut_mesh import Cut, CutGrid
from happyneurons.stages.align.system import Doubles, NodeGrid, Pair, System

# A pair's correspondences say as much about its affine map as this many independent ones would.
_INDEPENDENT_POINTS = 12.0
# Turn, growth and shear of the tissue (px at a section's border), as part of `drift_px`.
_LINEAR_DRIFT = 1 / 3


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
    shifts: list[Doubles]
    """Of each (sheets, ny, nx, 2), node [j, i] at (i, j) · node_spacing_px; one sheet where nothing is cut (see
    `cut_mesh`), NaN where a sheet does not reach."""
    jitter_px: float
    distortion_px: float

    def nodes(self, k: int, spacing_px: float) -> Doubles:
        """(sheets, ny, nx, 2) targets of the nodes of section k."""
        ny, nx = self.shifts[k].shape[1:3]
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
    cuts: Sequence[Cut | None] | None = None,
) -> Solution:
    """Place all good sections.

    z: their section numbers, ascending; width, height of a section. weak[k]: None or (ny, nx)
    stiffness 0..1 of section k at each node, low where tissue may be torn or is covered. cuts[k]: where it is torn,
    None if nowhere.
    """
    k = len(z)
    gaps = np.diff(np.asarray(z, dtype=np.float64))
    grid = NodeGrid(width, height, settings.node_spacing_px)
    if not pairs:
        return Solution(_identities(k), [np.zeros((1, *grid.shape, 2))] * k, 0.0, 0.0)
    affine = solve_affine(pairs, gaps, width, height, settings)
    shifts, distortion = solve_elastic(pairs, gaps, affine, grid, settings, weak, cuts)
    return centred(Solution(affine.matrices, shifts, affine.jitter_px, distortion), grid)


def centred(solution: Solution, grid: NodeGrid) -> Solution:
    """The same solution under the affine map that makes the sections' mean map the identity.

    Distortions have mean zero, so this is the best guess of the true frame; and it keeps the scale
    at exactly 1, which least squares with noise in its points would shrink a little.
    """
    spacing = grid.spacing_px
    ny, nx = grid.shape
    points = np.stack(np.meshgrid(np.arange(nx) * spacing, np.arange(ny) * spacing), axis=-1).reshape(-1, 2)
    count = len(solution.matrices)
    mean = sum((solution.nodes(k, spacing)[0] for k in range(count)), np.zeros((ny, nx, 2))).reshape(-1, 2) / count
    design = np.column_stack([points, np.ones(len(points))])
    fit = np.linalg.solve(np.einsum("ni,nj->ij", design, design), np.einsum("ni,nj->ij", design, mean))
    back = np.linalg.inv(fit[:2].T)
    matrices = np.einsum("ij,kjl->kil", back, solution.matrices)
    matrices[:, :, 2] -= back @ fit[2]
    shifts = [np.einsum("ij,syxj->syxi", back, s) for s in solution.shifts]
    return Solution(matrices, shifts, solution.jitter_px, solution.distortion_px)


# --- affine --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AffineMaps:
    """What whole sections do: their own maps, and how the tissue moves between them."""

    matrices: Doubles
    """(k, 2, 3) of the sections."""
    drift: Doubles
    """(k - 1, 2, 3): how far its turn, growth and shear move the tissue at a point, px per section, in the intervals
    between them."""
    jitter_px: float
    """rms of the sections' own shifts."""

    def part(self, start: int, stop: int) -> AffineMaps:
        """Of the sections start <= k < stop."""
        return AffineMaps(self.matrices[start:stop], self.drift[start : stop - 1], self.jitter_px)


def solve_affine(pairs: Sequence[Pair], gaps: Doubles, width: int, height: int, settings: SolveSettings) -> AffineMaps:
    """Affine maps of k sections, gaps (k - 1,) apart.

    Unknowns of a section (see `_coefficients`): shift x, shift y, turn, growth, two shears; px, all but
    the shifts at half the section's size from its middle.
    """
    size = np.array([width - 1, height - 1], dtype=np.float64)
    centre, half = size / 2, max(width, height) / 2
    # Four points with the mean and the spread of all of a section's points stand for a pair's map.
    corners = centre + size / np.sqrt(12) * np.array([[-1, -1], [1, -1], [-1, 1], [1, 1]])
    fits = [_pair_affine(pair, centre, half) for pair in pairs]
    ends = [corners + _linear_terms(corners, centre, half) @ fit for fit in fits]
    stand_ins = [Pair(p.a, p.b, corners, end, np.ones(4)) for p, end in zip(pairs, ends, strict=True)]

    drift = settings.drift_px * np.array([1.0, 1.0, *[_LINEAR_DRIFT] * 4])
    coefficients = {(p.a, p.b): _coefficients(fit) for p, fit in zip(pairs, fits, strict=True)}
    jitter = np.maximum(_estimate_jitter(coefficients, gaps, drift), [0.2, 0.2, 0.1, 0.1, 0.1, 0.1])
    basis = _AffineBasis(centre, half)
    system = System(stand_ins, gaps, [basis] * (len(gaps) + 1), basis)
    u, v = system.solve(
        sp.diags(np.tile(1 / jitter**2, len(gaps) + 1)), sp.diags(1 / drift**2), settings.drift_persistence,
        np.repeat(system.weight, 2) * _INDEPENDENT_POINTS / 4, settings.noise_px, system.offset.reshape(-1, 1),
        exact=True,
    )  # fmt: skip
    matrices = _identities(len(gaps) + 1) + _matrices(np.stack(u)[..., 0], centre, half)
    # Sections are shifted by so much more than tissue that a short stack hardly tells its shift from theirs: the
    # elastic solve, which knows how far it may differ from place to place, errs less.
    linear_drift = np.stack(v)[..., 0] * [0, 0, 1, 1, 1, 1]
    return AffineMaps(matrices, _matrices(linear_drift, centre, half), float(jitter[0]))


@dataclass(frozen=True)
class _AffineBasis:
    """Of affine maps, with the coefficients of `_coefficients`."""

    centre: Doubles
    half: float
    count: int = 6

    def basis(self, points: Doubles) -> Any:
        """Two rows a point, for x and y."""
        one, x, y = _linear_terms(points, self.centre, self.half).T
        none = np.zeros_like(x)
        in_x, in_y = [one, none, -y, x, x, y], [none, one, x, y, -y, x]
        return sp.csr_matrix(np.stack([np.column_stack(in_x), np.column_stack(in_y)], axis=1).reshape(-1, self.count))

    def coarse(self) -> Any:
        return sp.identity(self.count)


def _linear_terms(points: Doubles, centre: Doubles, half: float) -> Doubles:
    return np.column_stack([np.ones(len(points)), (points - centre) / half])


def _coefficients(fit: Doubles) -> Doubles:
    """(6,) shift x, shift y, turn, growth and two shears of a (3, 2) fit of `_linear_terms`."""
    shift, by_x, by_y = fit
    turn, growth = (by_x[1] - by_y[0]) / 2, (by_x[0] + by_y[1]) / 2
    return np.array([*shift, turn, growth, (by_x[0] - by_y[1]) / 2, (by_x[1] + by_y[0]) / 2])


def _matrices(coefficients: Doubles, centre: Doubles, half: float) -> Doubles:
    """(n, 2, 3) matrices of the displacements that (n, 6) coefficients stand for (see `_coefficients`)."""
    shift_x, shift_y, turn, growth, shear, shear_45 = coefficients.T
    rows = [[growth + shear, shear_45 - turn], [shear_45 + turn, growth - shear]]
    linear = np.moveaxis(np.array(rows), 2, 0) / half
    shift = np.column_stack([shift_x, shift_y]) - np.einsum("nij,j->ni", linear, centre)
    return np.concatenate([linear, shift[:, :, None]], axis=2)


def _estimate_jitter(fits: Mapping[tuple[int, int], Doubles], gaps: Doubles, drift: Doubles) -> Doubles:
    """rms of each coefficient of the sections' own affine maps, (6,), from the pairs' (see `_coefficients`).

    Second differences along z leave independent distortions and remove what persists; in a short
    stack there are too few of them, so that the first differences, less the expected drift, count too.
    """
    series = {a: fits[a, a + 1] for a in range(len(gaps)) if (a, a + 1) in fits}
    first = np.array([f**2 - (gaps[a] * drift) ** 2 for a, f in series.items()])
    second = np.array([(series[a + 1] - series[a]) ** 2 for a in series if a + 1 in series])
    variance = np.zeros(6)
    if len(first):
        variance = first.mean(axis=0) / 2
    if len(second):
        variance = np.maximum(variance, second.mean(axis=0) / 6)
    # Neither x and y nor the two directions of shear differ.
    variance[:2], variance[4:] = variance[:2].mean(), variance[4:].mean()
    return np.asarray(np.sqrt(np.maximum(variance, 0)))


def _pair_affine(pair: Pair, centre: Doubles, half: float) -> Doubles:
    """(3, 2) robust fit of a pair's displacement by `_linear_terms`."""
    design = _linear_terms(pair.a_xy, centre, half)
    moved = pair.b_xy - pair.a_xy
    weight = pair.weight
    fit = np.zeros((3, 2))
    for _ in range(5):
        weighted = design * weight[:, None]
        normal = np.einsum("ni,nj->ij", weighted, design) + 1e-9 * np.eye(3)
        fit = np.linalg.solve(normal, np.einsum("ni,nj->ij", weighted, moved))
        miss = np.linalg.norm(moved - np.einsum("ni,ij->nj", design, fit), axis=1)
        scale = max(0.05, float(np.median(miss)))
        weight = pair.weight / (1 + (miss / (3 * scale)) ** 2)
    return fit


# --- elastic -------------------------------------------------------------------------------------


def solve_elastic(
    pairs: Sequence[Pair],
    gaps: Doubles,
    affine: AffineMaps,
    grid: NodeGrid,
    settings: SolveSettings,
    weak: Sequence[Doubles | None] | None = None,
    cuts: Sequence[Cut | None] | None = None,
) -> tuple[list[Doubles], float]:
    """`Solution.shifts`, beyond affine maps, and the rms of elastic distortion (px)."""
    count = len(gaps) + 1
    meshes = [grid if cut is None else CutGrid(grid, cut) for cut in cuts or [None] * count]
    system = System(pairs, gaps, meshes, grid)
    offset = np.concatenate([_beyond(affine, pair, gaps) for pair in pairs])
    distortion = settings.distortion_px or _estimate_distortion(pairs, offset, grid)
    plain = grid.precision(distortion, settings.distortion_range_px)
    prior_u = sp.block_diag(
        [
            plain if mesh is grid and s is None else mesh.precision(distortion, settings.distortion_range_px, s)
            for mesh, s in zip(meshes, weak or [None] * count, strict=True)
        ]
    )
    prior_v = grid.precision(settings.drift_px, settings.drift_range_px)
    u, _ = system.solve(prior_u, prior_v, settings.drift_persistence, system.weight, settings.noise_px, offset)
    return [_on_sheets(mesh, values) for mesh, values in zip(meshes, u, strict=True)], distortion


def _on_sheets(mesh: NodeGrid | CutGrid, values: Doubles) -> Doubles:
    """(sheets, ny, nx, 2), NaN where a sheet does not reach."""
    if isinstance(mesh, NodeGrid):
        return values.reshape(1, *mesh.shape, 2)
    found, known = mesh.sheet_values(values)
    return np.where(known[..., None], found, np.nan)


def _beyond(affine: AffineMaps, pair: Pair, gaps: Doubles) -> Doubles:
    """(n, 2) displacement of a pair's points that neither its sections' affine maps nor affine drift explain."""
    drift = np.einsum("n,nij->ij", gaps[pair.a : pair.b], affine.drift[pair.a : pair.b])
    moved = apply(affine.matrices[pair.b], pair.b_xy) - apply(affine.matrices[pair.a], pair.a_xy)
    return np.asarray(moved - apply(drift, pair.a_xy))


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
