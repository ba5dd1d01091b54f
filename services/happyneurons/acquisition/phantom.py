"""A phantom of neuropil with known truth: space-filling neurites that look like electron microscopy.

Curved centre lines of different calibre, some branching, are laid into the largest remaining gaps.
Every voxel belongs to the centre line of least power distance (d² - r², a power diagram of the
lines' sample points) at a position disturbed by smooth noise, so that the neurites fill space and
their walls undulate. Walls between neurites become membranes (label 0). The picture has dark
membranes, textured cytoplasm, mitochondria with double membranes, vesicles and imaging noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from happyneurons.acquisition.noise import SmoothNoise
from happyneurons.acquisition.phantom_bodies import lay_bodies, paint_nuclei
from happyneurons.acquisition.phantom_texture import render

FloatArray = NDArray[np.float64]

STEP = 3.0  # px between sample points of a centre line
MARGIN = 20.0  # px that centre lines reach beyond the volume, so that its faces are nothing special
HALO = 16  # px of overlap between blocks of the distance map, and the largest distance it tells
MEMBRANE = 1.9  # px from the wall between two neurites to the cytoplasm
SMALLEST_GAP = 6.0  # px of free radius that another neurite is put into
BRANCHES = 0.2  # share of centre lines that belong to the neurite beside them
SMALLEST = 400  # voxels of the smallest labelled object at anisotropy 1


@dataclass(frozen=True)
class Phantom:
    """`image` uint8 and `labels` uint32, both (z, y, x); label 0 is membrane and extracellular space.

    Every label is one 26-connected component, and no two labels touch; labels are 1…n without gaps.
    """

    image: NDArray[np.uint8]
    labels: NDArray[np.uint32]
    voxel_size_nm_xyz: tuple[float, float, float]
    seed: int
    bodies: NDArray[np.uint32] | None = None
    """Cell bodies 1…n where there are any, (z, y, x), each a part of the labels; None: none were asked for."""

    @property
    def objects(self) -> int:
        return int(self.labels.max(initial=0))


def write_phantom(phantom: Phantom, uri: str) -> tuple[str, str]:
    """Write a phantom as precomputed volumes `uri/image` and `uri/labels`; returns their URIs."""
    from happyneurons.store.volumes import create_volume

    uris = []
    for name, voxels in (("image", phantom.image), ("labels", phantom.labels)):
        volume = create_volume(
            f"{uri}/{name}", start_zyx=(0, 0, 0), stop_zyx=voxels.shape,
            voxel_size_nm_xyz=phantom.voxel_size_nm_xyz, dtype=voxels.dtype.name,
            layer_type="image" if name == "image" else "segmentation",
        )  # fmt: skip
        volume.write((0, 0, 0), voxels)
        uris.append(volume.uri)
    return uris[0], uris[1]


@dataclass
class _Lines:
    """Sample points of all centre lines, in px of isotropic space."""

    points_zyx: FloatArray
    tangents_zyx: FloatArray
    radii: FloatArray
    neurite: NDArray[np.int64]


def make_phantom(
    shape_zyx: tuple[int, int, int] = (64, 256, 256),
    *,
    seed: int = 0,
    anisotropy: float = 1.0,
    voxel_size_nm_xyz: tuple[float, float, float] | None = None,
    cell_bodies: int = 0,
    body_radius_px: tuple[float, float] = (24.0, 34.0),
) -> Phantom:
    """Make a phantom; the same arguments give the same voxels.

    anisotropy: section thickness divided by pixel size; sections sample the same tissue more coarsely.
    voxel_size_nm_xyz: recorded only; default 8 nm pixels, sections `anisotropy` times as thick.
    cell_bodies: at most so many, as far as there is room, ellipsoids with a nucleus whose half axes lie within
    body_radius_px; neighbours may touch. Without them the voxels are those of phantoms that know none.
    Planes and blocks are worked on one by one: the peak is a few arrays of the volume's own size.
    """
    if min(shape_zyx) < 8 or anisotropy < 1:
        raise ValueError(f"phantom of shape {shape_zyx}, anisotropy {anisotropy}: needs at least 8³ voxels and >= 1")
    nz, ny, nx = shape_zyx
    rng = np.random.default_rng([seed, nz, ny, nx])
    extent = np.array([nz * anisotropy, ny, nx], dtype=np.float64)
    lines = _lay_lines(extent, rng)
    cells, nearest = _assign(lines, shape_zyx, anisotropy, rng)
    bodies = None
    if cell_bodies:
        bodies = lay_bodies(shape_zyx, anisotropy, cell_bodies, body_radius_px, seed)
        cells[bodies > 0] = cells.max() + bodies[bodies > 0]
    _absorb_fragments(cells)
    distance = _wall_distance(cells, anisotropy)
    labels = _label(cells, distance, anisotropy)
    image = render(labels, cells, distance, lines.tangents_zyx, nearest, anisotropy, rng)
    if bodies is not None:
        bodies[labels == 0] = 0
        paint_nuclei(image, bodies, anisotropy, seed)
    size = voxel_size_nm_xyz or (8.0, 8.0, 8.0 * anisotropy)
    return Phantom(image=image, labels=labels, voxel_size_nm_xyz=size, seed=seed, bodies=bodies)


def _lay_lines(extent: FloatArray, rng: np.random.Generator) -> _Lines:
    """Centre lines one after the other, each started in the largest gap found, stopped where it collides."""
    from scipy.spatial import cKDTree

    low, high = np.full(3, -MARGIN), extent + MARGIN
    lines = _Lines(np.empty((0, 3)), np.empty((0, 3)), np.empty(0), np.empty(0, np.int64))
    neurites, failures = 0, 0
    # The number of candidates grows with the volume, so that gaps are found equally well in all.
    candidates_count = 100 + int(np.prod(high - low) / 25_000)
    while failures < 12:
        radius = float(np.clip(rng.lognormal(np.log(10.0), 0.45), 4.5, 20.0))
        candidates = rng.uniform(low, high, (candidates_count, 3))
        tree = cKDTree(lines.points_zyx) if neurites else None
        start, room, neighbour = candidates[0], 2 * radius, -1
        if tree is not None:
            distance, index = _query(tree, candidates)
            gap = distance - lines.radii[index]
            best = int(np.argmax(gap))
            start, room, neighbour = candidates[best], float(gap[best]), int(index[best])
        if room < SMALLEST_GAP:
            failures += 1
            continue
        radius = min(radius, max(4.5, 0.9 * room))
        line, tangent = _walk(start, low, high, rng)
        phase = np.arange(len(line)) * STEP / rng.uniform(8, 18) + rng.uniform(0, 6)
        profile = radius * (1.0 + 0.22 * np.sin(phase))
        keep = slice(0, len(line))
        if tree is not None:
            origin = int(np.argmin(((line - start) ** 2).sum(1)))
            d, index = _query(tree, line)
            hit = np.flatnonzero(d < 0.85 * (profile + lines.radii[index]))
            before, after = hit[hit < origin], hit[hit > origin]
            keep = slice(int(before[-1]) + 1 if len(before) else 0, int(after[0]) if len(after) else len(line))
        if (keep.stop - keep.start) * STEP < min(30.0, 2.5 * room):
            failures += 1
            continue
        failures = 0
        if neighbour >= 0 and rng.random() < BRANCHES:
            identity = int(lines.neurite[neighbour])
            lines = _join(lines, _bridge(line[keep], lines, identity, 0.6 * radius))
        else:
            identity = neurites
            neurites += 1
        own = np.full(keep.stop - keep.start, identity)
        lines = _join(lines, _Lines(line[keep], tangent[keep], profile[keep], own))
    return lines


def _query(tree: Any, points: FloatArray) -> tuple[FloatArray, NDArray[np.intp]]:
    """(distance, index) of the nearest point of a k-d tree."""
    distance, index = tree.query(points)
    return distance, index


def _bridge(line: FloatArray, lines: _Lines, identity: int, radius: float) -> _Lines:
    """The straight piece that joins a branch to its neurite, where the two come closest."""
    from scipy.spatial import cKDTree

    stem = lines.points_zyx[lines.neurite == identity]
    d, index = _query(cKDTree(stem), line)
    i = int(np.argmin(d))
    n = max(2, int(d[i] / STEP))
    way = stem[index[i]] - line[i]
    points = line[i] + way * np.linspace(0, 1, n)[:, np.newaxis]
    direction = np.repeat(way[np.newaxis] / max(float(d[i]), 1e-6), n, axis=0)
    return _Lines(points, direction, np.full(n, max(4.5, radius)), np.full(n, identity))


def _join(a: _Lines, b: _Lines) -> _Lines:
    return _Lines(
        np.concatenate([a.points_zyx, b.points_zyx]),
        np.concatenate([a.tangents_zyx, b.tangents_zyx]),
        np.concatenate([a.radii, b.radii]),
        np.concatenate([a.neurite, b.neurite]),
    )


def _walk(
    start: FloatArray, low: FloatArray, high: FloatArray, rng: np.random.Generator
) -> tuple[FloatArray, FloatArray]:
    """A smooth random curve through `start` in both directions until it leaves the box."""
    direction = rng.normal(size=3)
    direction /= np.linalg.norm(direction)
    halves, tangents = [], []
    for sign in (-1.0, 1.0):
        p, t, bend = start.copy(), sign * direction, np.zeros(3)
        ps, ts = [p.copy()], [t.copy()]
        while ((p > low) & (p < high)).all() and len(ps) < 600:
            bend = 0.92 * bend + rng.normal(0, 0.012, 3)
            t = t + bend
            t /= np.linalg.norm(t)
            p = p + STEP * t
            ps.append(p.copy())
            ts.append(sign * t)
        halves.append(np.array(ps))
        tangents.append(np.array(ts))
    line = np.concatenate([halves[0][::-1], halves[1][1:]])
    return line, np.concatenate([tangents[0][::-1], tangents[1][1:]])


def _assign(
    lines: _Lines, shape_zyx: tuple[int, int, int], anisotropy: float, rng: np.random.Generator
) -> tuple[NDArray[np.uint32], NDArray[np.int32]]:
    """Neurite number + 1 of every voxel, and the sample point it is nearest to."""
    from scipy.spatial import cKDTree

    # |x - p|² - r² is least where the 4D distance to (p, sqrt(R² - r²)) is least, from (x, 0).
    largest = float(lines.radii.max())
    lift = np.sqrt(largest**2 - lines.radii**2)
    tree = cKDTree(np.column_stack([lines.points_zyx, lift]))
    nz, ny, nx = shape_zyx
    extent = (nz * anisotropy, float(ny), float(nx))
    coarse = [SmoothNoise(extent, 36.0, rng) for _ in range(3)]
    fine = [SmoothNoise(extent, 10.0, rng) for _ in range(3)]
    nearest = np.empty(shape_zyx, np.int32)
    y, x = np.arange(ny, dtype=np.float64), np.arange(nx, dtype=np.float64)
    for z in range(nz):
        position = np.array([z * anisotropy])
        query = np.zeros((ny, nx, 4))
        for axis, own in enumerate((position[:, None], y[:, None], x[None, :])):
            query[..., axis] = own + 7.0 * coarse[axis](position, y, x)[0] + 1.3 * fine[axis](position, y, x)[0]
        nearest[z] = _nearest(tree, query, lines.neurite)
    return (lines.neurite[nearest] + 1).astype(np.uint32), nearest


def _nearest(tree: Any, query: FloatArray, neurite: NDArray[np.int64]) -> NDArray[np.int32]:
    """Index of the nearest sample point for each of (y, x) positions: asked for every third pixel,
    and for the others only where the corners around them do not belong to one neurite."""
    ny, nx, _ = query.shape
    at_y, at_x = (np.unique(np.append(np.arange(0, n, 3), n - 1)) for n in (ny, nx))
    _, corners = _query(tree, query[np.ix_(at_y, at_x)].reshape(-1, 4))
    corners = corners.reshape(len(at_y), len(at_x))
    cell = neurite[corners]
    uniform = np.ones((len(at_y) - 1, len(at_x) - 1), bool)
    for dy, dx in ((0, 1), (1, 0), (1, 1)):
        uniform &= cell[:-1, :-1] == cell[dy : len(at_y) - 1 + dy, dx : len(at_x) - 1 + dx]
    row = np.clip(np.searchsorted(at_y, np.arange(ny), "right") - 1, 0, len(at_y) - 2)
    column = np.clip(np.searchsorted(at_x, np.arange(nx), "right") - 1, 0, len(at_x) - 2)
    index: NDArray[np.int32] = corners[np.ix_(row, column)].astype(np.int32)
    mixed = ~uniform[np.ix_(row, column)]
    index[mixed] = _query(tree, query[mixed])[1]
    return index


def _absorb_fragments(cells: NDArray[np.uint32]) -> None:
    """Parts of a cell that are cut off from its largest part go to what is nearest, in place."""
    import cc3d
    from scipy.ndimage import distance_transform_edt

    parts, number = cc3d.connected_components(cells, connectivity=6, return_N=True)
    size = np.bincount(parts.ravel(), minlength=number + 1)
    # Pieces of a useful size stay and count as neurites of their own.
    loose = size[parts] < 3000
    cells[:] = parts
    if loose.any() and not loose.all():
        index = distance_transform_edt(loose, return_distances=False, return_indices=True)
        cells[loose] = cells[tuple(axis[loose] for axis in index)]


def _wall_distance(cells: NDArray[np.uint32], anisotropy: float) -> NDArray[np.float32]:
    """Distance (px) of every voxel centre to the nearest wall between cells, up to HALO."""
    from scipy.ndimage import distance_transform_edt

    wall = np.zeros(cells.shape, bool)
    for axis in range(3):
        a = [slice(None)] * 3
        b = [slice(None)] * 3
        a[axis], b[axis] = slice(None, -1), slice(1, None)
        if axis == 0 and anisotropy > 2:
            continue  # a wall between two thick sections is not a membrane within either
        differs = cells[tuple(a)] != cells[tuple(b)]
        wall[tuple(a)] |= differs
        wall[tuple(b)] |= differs
    distance = np.empty(cells.shape, np.float32)
    halo = (int(np.ceil(HALO / anisotropy)), HALO, HALO)
    for box, grown, inner in _blocks(cells.shape, (64, 256, 256), halo):
        if wall[grown].any():
            d = distance_transform_edt(~wall[grown], sampling=(anisotropy, 1, 1))
            distance[box] = np.minimum(d[inner], HALO) + 0.5
        else:
            distance[box] = HALO
    return distance


def _blocks(shape: tuple[int, ...], block: tuple[int, ...], halo: tuple[int, ...]) -> Any:
    for start in np.ndindex(*(-(-n // b) for n, b in zip(shape, block, strict=True))):
        low = [i * b for i, b in zip(start, block, strict=True)]
        high = [min(a + b, n) for a, b, n in zip(low, block, shape, strict=True)]
        outer = [max(0, a - h) for a, h in zip(low, halo, strict=True)]
        end = [min(n, b + h) for b, h, n in zip(high, halo, shape, strict=True)]
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        grown = tuple(slice(a, b) for a, b in zip(outer, end, strict=True))
        inner = tuple(slice(a - o, b - o) for a, b, o in zip(low, high, outer, strict=True))
        yield box, grown, inner


def _label(cells: NDArray[np.uint32], distance: NDArray[np.float32], anisotropy: float) -> NDArray[np.uint32]:
    """Cytoplasm as labels 1…n, one connected component each; what is tiny becomes 0."""
    import cc3d

    inside = np.where(distance > MEMBRANE, cells, 0).astype(np.uint32)
    parts, number = cc3d.connected_components(inside, connectivity=26, return_N=True)
    size = np.bincount(parts.ravel(), minlength=number + 1)
    size[0] = 0
    keep = size >= SMALLEST / anisotropy
    renumber = np.zeros(number + 1, np.uint32)
    renumber[keep] = np.arange(1, int(keep.sum()) + 1, dtype=np.uint32)
    labels: NDArray[np.uint32] = renumber[parts]
    return labels
