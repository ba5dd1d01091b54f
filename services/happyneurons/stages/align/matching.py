"""Where does the tissue of one section lie in another? A dense search from coarse to fine.

It starts from a rigid map (see `coarse`). At each pyramid level the moving
section is warped by what is known so far, and normalized cross-correlation under a Gaussian window
is taken for every small shift and all places at once (a product, an area average and a blur a
shift), so that the cost does not depend on the window. Unlike a fit of the mean displacement, the
peak of the correlation does not average the two sides of a fold.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from happyneurons.stages.align.coarse import Doubles, Floats, Level, MatchSettings, coarse_affine
from happyneurons.stages.align.prepare import section_px

# Places are asked for on cells of this size at each level; twice that where a level is large.
_CELL_PX = 4
# Means are taken of every other pixel each way. Products of images without detail below 1.5 px are smooth enough:
# what would pass for their mean lies half a cycle a px away, where 0.4 % of their power is left.
_STRIDE = 2
# Correlation below which a place counts as not found.
_MINIMUM_CORRELATION = 0.3
# A place needs this part of its surroundings to be valid tissue in both sections.
_MINIMUM_VALID = 0.35


@dataclass(frozen=True)
class PairMatch:
    """Corresponding points of sections a and b, (n, 2) of (x, y) px, and how sure they are."""

    a_xy: Doubles
    b_xy: Doubles
    correlation: Doubles
    matrix: Doubles
    """(2, 3) affine map a → b that the search arrived at."""
    coarse_score: float
    found: float
    """Part of the valid places that were found: the pair's confidence."""

    def scaled(self, factor: int) -> PairMatch:
        """In px of the sections, of which working pictures have been averaged down by `factor`; but for the matrix."""
        return replace(self, a_xy=section_px(self.a_xy, factor), b_xy=section_px(self.b_xy, factor))


def match_pair(a: list[Level], b: list[Level], settings: MatchSettings) -> PairMatch:
    """Correspondences between two sections given as pyramids (see `pyramid`).

    Never fails: two images that have nothing in common come back with `found` near 0.
    """
    matrix, score = coarse_affine(a[-1], b[-1], settings)
    top = len(a) - 1
    field = _Field(matrix, np.zeros((1, 1, 2), np.float32), float(_cell(a[top]) * a[top].factor))
    for index in range(top, -1, -1):
        last = index == 0
        # The coarsest level must still find elastic deformation and what the coarse search left.
        radius = 5 if index == top else 2
        field, places = _refine(a[index], b[index], field, radius, settings, smooth=True)
        if index == top:
            field = _refit(field, places)
        if last:
            _, places = _refine(a[0], b[0], field, 2, settings, smooth=False)
    step = max(1, round(settings.spacing_px / _cell(a[0])))
    chosen = np.zeros(places.ok.shape, dtype=bool)
    chosen[step // 2 :: step, step // 2 :: step] = True
    use = places.ok & chosen
    found = float(np.count_nonzero(places.ok)) / max(1, int(np.count_nonzero(places.valid)))
    return PairMatch(
        places.a_xy[use], places.b_xy[use], places.correlation[use].astype(np.float64), field.matrix, score, found
    )


# --- fine --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Field:
    """a → b in px of the finest level: an affine map plus displacements (ny, nx, 2) on a grid.

    Grid place [j, i] is the point ((i + 0.5) · pitch − 0.5, (j + 0.5) · pitch − 0.5).
    """

    matrix: Doubles
    shifts: Floats
    pitch_px: float

    def shifts_at(self, x: Doubles, y: Doubles) -> Floats:
        """Displacements (len(y), len(x), 2); constant beyond the grid."""
        gx, gy = np.meshgrid((x + 0.5) / self.pitch_px - 0.5, (y + 0.5) / self.pitch_px - 0.5)
        return np.asarray(
            cv2.remap(
                self.shifts,
                gx.astype(np.float32),
                gy.astype(np.float32),
                cv2.INTER_LINEAR,
                borderMode=cv2.BORDER_REPLICATE,
            )
        )

    def targets(self, a: Level) -> Floats:
        """(h, w, 2) px of b's level that the px of a's lead to. The pitch must be whole px of that level.

        Computed at the grid's places and one more on each side: between them it is bilinear.
        """
        step = round(self.pitch_px / a.factor)
        height, width = a.image.shape
        ny, nx = -(-height // step) + 2, -(-width // step) + 2
        x, y = (_centres(n, self.pitch_px) - self.pitch_px for n in (nx, ny))
        places = (_affine_grid(self.matrix, x, y) + self.shifts_at(x, y) + 0.5) / a.factor - 0.5
        # cv2.resize works with the centres of pixels, as the grid does with those of its cells.
        full = cv2.resize(places.astype(np.float32), (nx * step, ny * step), interpolation=cv2.INTER_LINEAR)
        return np.asarray(full[step : step + height, step : step + width])


@dataclass(frozen=True)
class _Places:
    """What one level found at the cells of its grid; arrays (ny, nx[, 2]), px of the finest level."""

    a_xy: Doubles
    b_xy: Doubles
    correlation: Floats
    ok: NDArray[np.bool_]
    valid: NDArray[np.bool_]


def _centres(count: int, pitch_px: float) -> Doubles:
    """Centres of so many cells of that size, px."""
    return (np.arange(count, dtype=np.float64) + 0.5) * pitch_px - 0.5


def _affine_grid(matrix: Doubles, x: Doubles, y: Doubles) -> Doubles:
    return np.stack([(m[0] * x + m[2]) + (m[1] * y)[:, None] for m in matrix], axis=-1)


def _cell(level: Level) -> int:
    return _CELL_PX if max(level.image.shape) <= 512 else 2 * _CELL_PX


def _refine(
    a: Level, b: Level, field: _Field, radius: int, settings: MatchSettings, smooth: bool
) -> tuple[_Field, _Places]:
    """Search ± radius px of this level around the field. `smooth` also makes a new field of it."""
    f, cell = a.factor, _cell(a)
    target = field.targets(a)
    image = cv2.remap(b.image, target, None, cv2.INTER_LINEAR)
    mask = cv2.remap(b.mask, np.ascontiguousarray(target[::_STRIDE, ::_STRIDE]), None, cv2.INTER_LINEAR)
    # Coarse levels hold fewer pixels: their window shrinks less than their pixels grow.
    window = settings.window_px / min(f, 2)
    shift, correlation, valid = _correlation_peaks(a.image, a.mask, image, mask, radius, cell, window)
    gx, gy = (_centres(n, cell * f) for n in (shift.shape[1], shift.shape[0]))
    found = np.isfinite(shift[..., 0]) & (correlation > _MINIMUM_CORRELATION) & valid
    ok = _agreeing(np.nan_to_num(shift), found)
    turned = np.nan_to_num(shift).astype(np.float64) @ field.matrix[:, :2].T * f
    before = field.shifts_at(gx, gy)
    start = _affine_grid(field.matrix, gx, gy) + before
    places = _Places(np.stack(np.meshgrid(gx, gy), axis=-1), start + turned, correlation, ok, valid)
    if smooth:
        weight = np.where(ok, correlation**2, 0).astype(np.float32)
        blur_cells = max(1.0, 0.5 * window / cell)
        smoothed = _smooth((before + turned).astype(np.float32), weight, blur_cells)
        field = _Field(field.matrix, smoothed, float(cell * f))
    return field, places


def _correlation_peaks(
    a: Floats, a_mask: Floats, b: Floats, b_mask: Floats, radius: int, cell: int, window_px: float
) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """Best shift (ny, nx, 2) of each cell with a(p) ≈ b(p + shift), its correlation, and where it may be asked.

    a, a_mask, b: (h, w); b_mask: each _STRIDE-th pixel of its rows and columns, all that is asked of a mask.
    Subpixel by a parabola through the peak. NaN where the peak lies on the search range's border.
    """
    ny, nx = max(1, a.shape[0] // cell), max(1, a.shape[1] // cell)
    height, width = (-(-min(n, m) // _STRIDE) for n, m in ((ny * cell, a.shape[0]), (nx * cell, a.shape[1])))
    sigma = window_px / cell

    def taken(x: Floats, x0: int = 0, y0: int = 0) -> Floats:
        return np.ascontiguousarray(x[y0::_STRIDE, x0::_STRIDE])

    def local_mean(x: Floats) -> Floats:
        # By halves, for which cv2 has a faster way.
        if cell > 2 * _STRIDE:
            x = np.asarray(cv2.resize(x, (-(-width // 2), -(-height // 2)), interpolation=cv2.INTER_AREA))
        cells = cv2.resize(x, (nx, ny), interpolation=cv2.INTER_AREA)
        return np.asarray(cv2.GaussianBlur(cells, (0, 0), sigma, borderType=cv2.BORDER_CONSTANT))

    a, a_mask, b_mask = (x[:height, :width] for x in (taken(a), taken(a_mask), b_mask))
    wide_b = cv2.copyMakeBorder(b, radius, radius, radius, radius, cv2.BORDER_CONSTANT)
    parts = [[taken(wide_b, x0, y0) for x0 in range(_STRIDE)] for y0 in range(_STRIDE)]

    def moved(dx: int, dy: int) -> Floats:
        part = parts[dy % _STRIDE][dx % _STRIDE]
        return part[dy // _STRIDE :, dx // _STRIDE :][:height, :width]

    # Dividing by the window's part inside the image keeps the border from counting as invalid twice.
    inside = local_mean(np.ones_like(a))
    valid = local_mean(a_mask * b_mask) / inside > _MINIMUM_VALID
    size = 2 * radius + 1
    power_a = local_mean(a * a * b_mask)
    # Power changes little over a shift: that of no shift, moved, does for all.
    power_b = local_mean(moved(radius, radius) ** 2 * a_mask)
    table = np.empty((size, size, ny, nx), np.float32)
    product = np.empty_like(a)
    for dy in range(size):
        for dx in range(size):
            shift_cells = np.array([[1, 0, (dx - radius) / cell], [0, 1, (dy - radius) / cell]])
            power = cv2.warpAffine(
                power_b, shift_cells, (nx, ny), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                borderMode=cv2.BORDER_REPLICATE,
            )  # fmt: skip
            cv2.multiply(a, moved(dx, dy), dst=product)
            table[dy, dx] = local_mean(product) / np.sqrt(power_a * power + 1e-6)
    flat = table.reshape(size * size, ny, nx)
    best = flat.argmax(axis=0)
    by, bx = np.divmod(best, size)
    border = (by == 0) | (by == size - 1) | (bx == 0) | (bx == size - 1)
    cy, cx = np.clip(by, 1, size - 2), np.clip(bx, 1, size - 2)
    j, i = np.indices((ny, nx))
    middle = table[cy, cx, j, i]
    sub_x = _parabola(table[cy, cx - 1, j, i], middle, table[cy, cx + 1, j, i])
    sub_y = _parabola(table[cy - 1, cx, j, i], middle, table[cy + 1, cx, j, i])
    shift = np.stack([cx - radius + sub_x, cy - radius + sub_y], axis=-1).astype(np.float32)
    shift[border] = np.nan
    return shift, np.take_along_axis(flat, best[None], axis=0)[0], valid


def _parabola(before: Floats, middle: Floats, after: Floats) -> Floats:
    """Position of the top of the parabola through three values, within ± 0.5."""
    curve = before - 2 * middle + after
    top = np.where(curve < -1e-9, 0.5 * (before - after) / np.where(curve < -1e-9, curve, 1), 0)
    return np.asarray(np.clip(top, -0.5, 0.5), dtype=np.float32)


def _agreeing(shift: Floats, found: NDArray[np.bool_], tolerance_px: float = 1.5) -> NDArray[np.bool_]:
    """Places that at least a third of their found neighbours (5 x 5) agree with.

    A vote, not a distance from the median: both sides of a fold have neighbours that agree.
    """
    pad = 2
    # One component after the other in memory: four times as fast.
    parts = np.ascontiguousarray(np.moveaxis(shift, -1, 0))
    wide = np.pad(parts, ((0, 0), (pad, pad), (pad, pad)))
    there = np.pad(found, pad)
    height, width = found.shape
    votes, voters = np.zeros(found.shape, np.int32), np.zeros(found.shape, np.int32)
    for dy in range(2 * pad + 1):
        for dx in range(2 * pad + 1):
            if dy == dx == pad:
                continue
            other = there[dy : dy + height, dx : dx + width]
            apart = np.abs(wide[:, dy : dy + height, dx : dx + width] - parts)
            near = np.maximum(apart[0], apart[1]) < tolerance_px
            voters += other
            votes += other & near
    return np.asarray(found & (votes >= 3) & (3 * votes >= voters))


def _smooth(values: Floats, weight: Floats, sigma_cells: float) -> Floats:
    """Weighted Gaussian mean of (ny, nx, 2) values; where nothing is near, of a wider and wider one."""
    total = np.zeros_like(values)
    norm = np.zeros_like(weight)
    scale = 1.0
    for k in range(4):
        sigma = sigma_cells * 3.0**k
        w = cv2.GaussianBlur(weight, (0, 0), sigma, borderType=cv2.BORDER_CONSTANT)
        v = np.stack(
            [cv2.GaussianBlur(values[..., c] * weight, (0, 0), sigma, borderType=cv2.BORDER_CONSTANT) for c in (0, 1)],
            axis=-1,
        )
        total += scale * v
        norm += scale * w
        scale *= 1e-2
    return np.asarray(total / (norm[..., None] + 1e-12), dtype=np.float32)


def _refit(field: _Field, places: _Places) -> _Field:
    """The same field about a better affine map, fitted robustly to what was found."""
    if np.count_nonzero(places.ok) < 12:
        return field
    a, b = places.a_xy[places.ok], places.b_xy[places.ok]
    centre = a.mean(axis=0)
    design = np.column_stack([a - centre, np.ones(len(a))])
    weight = places.correlation[places.ok].astype(np.float64)
    solution = np.zeros((3, 2))
    robust = weight
    for _ in range(4):
        w = np.sqrt(robust)[:, None]
        solution = np.linalg.lstsq(design * w, b * w, rcond=None)[0]
        miss = np.linalg.norm(design @ solution - b, axis=1)
        scale = max(0.5, 2.0 * float(np.median(miss)))
        robust = weight / (1 + (miss / scale) ** 2)
    linear = solution[:2].T
    matrix = np.column_stack([linear, solution[2] - linear @ centre])
    ny, nx = field.shifts.shape[:2]
    gx, gy = (_centres(n, field.pitch_px) for n in (nx, ny))
    moved = _affine_grid(field.matrix, gx, gy) - _affine_grid(matrix, gx, gy)
    return _Field(matrix, (field.shifts + moved).astype(np.float32), field.pitch_px)
