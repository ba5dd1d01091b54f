"""Neuroglancer's multi-resolution meshes: an octree of Draco fragments for each object.

Format: google/neuroglancer, src/datasource/precomputed/meshes.md. Stored coordinates are nm here,
so the transform in `info` is the identity. Level 0 is the finest; level i has chunks of
`chunk_shape · 2^i` counted from `grid_origin`, the coarsest level is a single chunk.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from happyneurons.stages.mesh.cutting import cut
from happyneurons.stages.mesh.surfaces import Surface

LEVEL_REDUCTION = 4  # triangles of a level to those of the next: halving the detail along both directions
DRACO_LEVEL = 7


def layer_info(vertex_bits: int, sharding: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The `info` of a mesh layer of its own."""
    info: dict[str, Any] = {
        "@type": "neuroglancer_multilod_draco",
        "vertex_quantization_bits": vertex_bits,
        "transform": [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0],
        "lod_scale_multiplier": 1,
    }
    if sharding is not None:
        info["sharding"] = dict(sharding)
    return info


def encode(
    surface: Surface, *, levels: int, chunk_nm: float, detail_nm: float, vertex_bits: int
) -> tuple[bytes, bytes] | None:
    """(manifest, fragments) of one object; None if nothing is left of it.

    levels: at most so many levels; chunk_nm: no chunk of level 0 is made smaller than this.
    detail_nm: size of the details of level 0, by which Neuroglancer chooses a level.
    """
    if not len(surface.faces):
        return None
    origin = np.floor(surface.vertices.min(axis=0))
    extent = np.maximum(np.ceil(surface.vertices.max(axis=0)) - origin, 1.0)
    count = int(np.clip(np.floor(np.log2(max(float(extent.max()) / chunk_nm, 1.0))) + 1, 1, levels))
    chunk = np.ceil(extent / 2 ** (count - 1)).astype(np.float32)
    fragments: list[dict[tuple[int, int, int], bytes]] = []
    for level, mesh in enumerate(_levels(surface, count, detail_nm)):
        nodes = _split(mesh, origin, chunk, level, single=level == count - 1)
        found = {p: _draco(m, origin, chunk * 2**level, p, vertex_bits) for p, m in nodes.items()}
        if level:  # the octree needs a parent for every node, an empty one if must be
            for x, y, z in fragments[-1]:
                found.setdefault((x // 2, y // 2, z // 2), b"")
        fragments.append(dict(sorted(found.items(), key=lambda item: _morton(item[0]))))
    manifest = _manifest(origin, chunk, fragments, [detail_nm * 2**i for i in range(count)])
    data = b"".join(part for level_parts in fragments for part in level_parts.values())
    return (manifest, data) if data else None


def _levels(surface: Surface, count: int, detail_nm: float) -> list[Any]:
    """A surface and its ever coarser forms, as zmesh meshes."""
    import zmesh

    meshes = [zmesh.Mesh(surface.vertices, surface.faces, None)]
    for level in range(1, count):
        coarser = _coarser(meshes[-1], detail_nm * 2 ** (level + 1))
        meshes.append(coarser if len(coarser.faces) else meshes[-1])
    return meshes


def _coarser(mesh: Any, max_error_nm: float) -> Any:
    """A closed mesh with up to LEVEL_REDUCTION times fewer triangles, moved by about `max_error_nm` at most.

    Edge collapse by quadric error (Garland and Heckbert 1997) in the fast form of zmesh: the
    tolerated error grows with each pass as alpha·(pass + K)^aggressiveness. alpha is chosen such
    that the last pass tolerates max_error_nm², so that the bound holds whatever the target is.
    """
    import zmesh

    passes, offset, power = 60, 3, 3
    return zmesh.simplify_fqmr(
        mesh, target_count=max(8, len(mesh.faces) // LEVEL_REDUCTION), aggressiveness=power, max_iterations=passes,
        alpha=max_error_nm**2 / (passes + offset) ** power, K=offset,
    )  # fmt: skip


def _split(
    mesh: Any, origin: np.ndarray, chunk: np.ndarray, level: int, *, single: bool
) -> dict[tuple[int, int, int], Surface]:
    """A level's mesh cut into chunks. Above level 0 no triangle may cross the borders of the next
    finer chunks either, because a chunk can be drawn without those of its octants that are there finer."""
    surface = Surface(mesh.vertices, mesh.faces)
    if level == 0:
        return {(0, 0, 0): surface} if single else cut(surface, chunk, origin)
    parents: dict[tuple[int, int, int], list[Surface]] = {}
    for (x, y, z), piece in sorted(cut(surface, chunk * 2 ** (level - 1), origin).items()):
        parents.setdefault((x // 2, y // 2, z // 2), []).append(piece)
    return {position: _together(pieces) for position, pieces in parents.items()}


def _together(pieces: list[Surface]) -> Surface:
    offsets = np.cumsum([0, *(len(p.vertices) for p in pieces)])
    faces = [p.faces + np.uint32(o) for p, o in zip(pieces, offsets[:-1], strict=True)]
    return Surface(np.concatenate([p.vertices for p in pieces]), np.concatenate(faces))


def _draco(
    surface: Surface, origin: np.ndarray, chunk: np.ndarray, position: tuple[int, int, int], vertex_bits: int
) -> bytes:
    """A chunk's mesh with integer vertices, 0 to 2^bits - 1 along the chunk's edges."""
    import DracoPy

    top = 2**vertex_bits - 1
    scaled = (surface.vertices.astype(np.float64) - origin - chunk * np.array(position)) / chunk * top
    vertices = np.clip(np.rint(scaled), 0, top).astype(np.uint32)
    a, b, c = (vertices[surface.faces[:, i]] for i in range(3))
    whole = (a != b).any(1) & (b != c).any(1) & (a != c).any(1)  # rounding may close a triangle
    if not whole.any():
        return b""
    data: bytes = DracoPy.encode(
        vertices, surface.faces[whole], quantization_bits=vertex_bits, compression_level=DRACO_LEVEL
    )
    return data


def _manifest(
    origin: np.ndarray,
    chunk: np.ndarray,
    fragments: list[dict[tuple[int, int, int], bytes]],
    scales: list[float],
) -> bytes:
    count = len(fragments)
    parts = [
        chunk.astype("<f4").tobytes(),
        origin.astype("<f4").tobytes(),
        struct.pack("<I", count),
        np.array(scales, dtype="<f4").tobytes(),
        np.zeros((count, 3), dtype="<f4").tobytes(),
        np.array([len(level) for level in fragments], dtype="<u4").tobytes(),
    ]
    for level in fragments:
        positions: NDArray[Any] = np.array(list(level), dtype="<u4").reshape(-1, 3)
        parts.append(positions.T.tobytes())
        parts.append(np.array([len(data) for data in level.values()], dtype="<u4").tobytes())
    return b"".join(parts)


def _morton(position: tuple[int, int, int]) -> int:
    """Z-order: bits of x, y, z interleaved, x lowest."""
    code = 0
    for bit in range(max(v.bit_length() for v in position)):
        for axis, value in enumerate(position):
            code |= (value >> bit & 1) << (3 * bit + axis)
    return code
