"""Surfaces of the labels of one block: marching cubes and simplification (zmesh)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from happyneurons.imaging.blocks import Block, BlockGrid

OVERLAP_VX = 1  # marching cubes needs the next voxel: neighbouring blocks then meet in one plane of vertices
STEPS_PER_VOXEL = 64  # vertices lie on a grid as fine as this


@dataclass
class Surface:
    """Triangles: `vertices` (n, 3) float32, (x, y, z) in nm; `faces` (m, 3) uint32."""

    vertices: NDArray[np.float32]
    faces: NDArray[np.uint32]

    def to_bytes(self) -> bytes:
        """The legacy precomputed form: vertex count, vertices, faces; little-endian."""
        count = np.array([len(self.vertices)], dtype="<u4")
        return count.tobytes() + self.vertices.astype("<f4").tobytes() + self.faces.astype("<u4").tobytes()

    @staticmethod
    def from_bytes(data: bytes) -> Surface:
        count = int(np.frombuffer(data, "<u4", 1)[0])
        vertices = np.frombuffer(data, "<f4", 3 * count, offset=4).reshape(-1, 3)
        faces = np.frombuffer(data, "<u4", offset=4 + 12 * count).reshape(-1, 3)
        return Surface(vertices.astype(np.float32), faces.astype(np.uint32))


def join(surfaces: Sequence[Surface]) -> Surface:
    """One surface of the pieces of neighbouring blocks: equal vertices of their seams become one."""
    offsets = np.cumsum([0, *(len(s.vertices) for s in surfaces)])
    vertices = np.concatenate([s.vertices for s in surfaces])
    faces = np.concatenate([s.faces + np.uint32(o) for s, o in zip(surfaces, offsets[:-1], strict=True)])
    unique, inverse = np.unique(vertices, axis=0, return_inverse=True)
    faces = inverse.reshape(-1)[faces].astype(np.uint32)
    a, b, c = faces.T
    return Surface(unique.astype(np.float32), faces[(a != b) & (b != c) & (a != c)])


def closing_pad(block: Block, grid: BlockGrid) -> list[tuple[int, int]]:
    """Layers of background to add on both sides of each axis: meshes are closed at the volume's own faces."""
    sides = zip(block.start_zyx, block.stop_zyx, grid.low_zyx, grid.high_zyx, strict=True)
    return [(int(a == low), int(b == high)) for a, b, low, high in sides]


def block_surfaces(
    labels_zyx: np.ndarray,
    origin_zyx: Sequence[int],
    pad: Sequence[tuple[int, int]],
    voxel_size_nm_xyz: Sequence[float],
    *,
    max_error_nm: float,
    reduction: int,
) -> dict[int, Surface]:
    """Surfaces of all labels of a block, in nm of the whole volume.

    labels_zyx: (z, y, x) labels with the overlap; origin_zyx: voxel where it begins.
    """
    import zmesh

    padded = np.pad(labels_zyx, pad)
    resolution = tuple(float(v) for v in voxel_size_nm_xyz)
    mesher = zmesh.Mesher(resolution)
    mesher.mesh(padded.T)
    corner = np.array([o - p[0] for o, p in zip(origin_zyx, pad, strict=True)], dtype=np.float64)[::-1] * resolution
    surfaces: dict[int, Surface] = {}
    for label in sorted(int(i) for i in mesher.ids()):
        # zmesh's own simplification leaves every vertex of an open border where it is: seams stay
        # closed. (Its faster simplify_fqmr tears holes beside open borders, for all of preserve_border.)
        mesh = mesher.get(
            label,
            reduction_factor=reduction if reduction > 1 else 0,
            max_error=max_error_nm,
            voxel_centered=True,
        )
        mesher.erase(label)
        # The seam's vertices, on half voxels, must come out equal from either block.
        steps = np.rint(mesh.vertices.astype(np.float64) / resolution * STEPS_PER_VOXEL)
        vertices = (steps / STEPS_PER_VOXEL * resolution + corner).astype(np.float32)
        if len(mesh.faces):
            surfaces[label] = Surface(vertices, np.asarray(mesh.faces, dtype=np.uint32))
    return surfaces
