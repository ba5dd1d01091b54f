"""TEASAR skeletons of one block, and of one object from its blocks (kimimaro, GPL; extra `igneous`).

Method: Sato et al., TEASAR, 2000; Bae et al., Functional connectomics spanning multiple areas of
mouse visual cortex, 2025 (kimimaro's adaptation: rolling-ball invalidation from the distance
transform, paths placed so that neighbouring blocks meet at their common border).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from happyneurons.errors import UserError
from happyneurons.store.swc import swc_text

OVERLAP_VX = 1  # kimimaro places the ends of skeletons in the plane that two blocks share
ATTRIBUTES = [{"id": "radius", "data_type": "float32", "num_components": 1}]


def _kimimaro() -> Any:
    try:
        import kimimaro
    except ImportError:
        raise UserError("skeletonize needs the package kimimaro: pip install 'happyneurons[igneous]'") from None
    return kimimaro


def block_skeletons(
    labels_zyx: np.ndarray,
    origin_zyx: Sequence[int],
    voxel_size_nm_xyz: Sequence[float],
    teasar: Mapping[str, float],
) -> dict[int, bytes]:
    """Skeletons of all labels of a block, as precomputed bytes, vertices in nm of the whole volume."""
    found = _kimimaro().skeletonize(
        np.asfortranarray(labels_zyx.T), teasar_params=dict(teasar), anisotropy=tuple(voxel_size_nm_xyz),
        dust_threshold=0, fix_branching=True, fix_borders=True, progress=False, parallel=1,
    )  # fmt: skip
    corner = (np.array(origin_zyx[::-1], dtype=np.float64) + 0.5) * voxel_size_nm_xyz  # centres of voxels
    pieces: dict[int, bytes] = {}
    for label, skeleton in sorted(found.items()):
        if len(skeleton.vertices):
            skeleton.vertices = (skeleton.vertices.astype(np.float64) + corner).astype(np.float32)
            skeleton.extra_attributes = ATTRIBUTES
            pieces[int(label)] = bytes(skeleton.to_precomputed())
    return pieces


def join(label: int, pieces: Sequence[bytes], *, min_length_nm: float, tick_length_nm: float) -> Any | None:
    """One osteoid.Skeleton, a forest without loops, of an object's pieces; None if too little is left."""
    from osteoid import Skeleton

    parts = [Skeleton.from_precomputed(piece, label, ATTRIBUTES) for piece in pieces]
    joined = Skeleton.simple_merge(parts).consolidate()
    joined.id = label
    if len(joined.edges):
        joined = _kimimaro().postprocess(joined, dust_threshold=min_length_nm, tick_threshold=tick_length_nm)
    if not len(joined.edges):
        return None
    joined.id = label
    joined.extra_attributes = ATTRIBUTES
    return joined


def swc(vertices: NDArray[Any], edges: NDArray[Any], radius: NDArray[Any]) -> bytes:
    """SWC text, x y z and radius in µm, a tree for each connected part, parents before children.

    vertices (n, 3) in nm, edges (m, 2), radius (n,) in nm.
    """
    return swc_text(vertices, edges, radius, comments=["x y z radius in micrometres"])[0]
