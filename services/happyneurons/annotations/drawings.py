"""Trees of an NML as what other programs read: skeletons of a precomputed layer, a table, a Neuroglancer layer."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from happyneurons.annotations.nml import Nml, Tree, voxel_centres

COLUMNS = ("x", "y", "z", "tree", "name", "node", "comment")
SKELETON_INFO = {
    "@type": "neuroglancer_skeletons",
    "transform": [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0],
    "vertex_attributes": [],
    "segment_properties": "segment_properties",
}


def places_nm(tree: Tree, voxel_size_nm_xyz: Sequence[float], shift_xyz: Sequence[int]) -> NDArray[np.float64]:
    """(n, 3) nm, x y z, of a tree's nodes; shift: voxels that the dataset was moved by, taken back."""
    return (voxel_centres(tree.positions_xyz) - np.asarray(shift_xyz)) * np.asarray(voxel_size_nm_xyz, np.float64)


def skeleton_bytes(vertices_nm: NDArray[np.float64], edges: NDArray[np.int64]) -> bytes:
    """A precomputed skeleton without attributes (google/neuroglancer, skeletons.md)."""
    head = struct.pack("<II", len(vertices_nm), len(edges))
    return head + vertices_nm.astype("<f4").tobytes() + edges.astype("<u4").tobytes()


def cable_nm(vertices_nm: NDArray[np.float64], edges: NDArray[np.int64]) -> float:
    """Length of all edges."""
    ends = vertices_nm[edges]
    return float(np.linalg.norm(ends[:, 0] - ends[:, 1], axis=1).sum())


def segment_properties(trees: Iterable[Tree]) -> dict[str, Any]:
    """Neuroglancer's list of the skeletons: their trees' names."""
    listed = list(trees)
    return {
        "@type": "neuroglancer_segment_properties",
        "inline": {
            "ids": [str(tree.id) for tree in listed],
            "properties": [{"id": "label", "type": "label", "values": [tree.name for tree in listed]}],
        },
    }


def point_rows(nml: Nml, trees: Iterable[Tree], shift_xyz: Sequence[int]) -> list[list[Any]]:
    """A row for each node, see COLUMNS: its place in voxels, as `segment` takes seeds."""
    rows: list[list[Any]] = []
    for tree in trees:
        moved = tree.positions_xyz - np.asarray(shift_xyz)
        for node, place in zip(tree.node_ids.tolist(), moved.tolist(), strict=True):
            at = [int(v) if v == int(v) else v for v in place]
            rows.append([*at, tree.id, tree.name, node, nml.comments.get(node, "")])
    return rows


def neuroglancer_layer(name: str, nml: Nml, shift_xyz: Sequence[int] = (0, 0, 0)) -> dict[str, Any]:
    """An annotation layer of a Neuroglancer state: nodes as points, edges as lines, boxes; with comments.

    Coordinates are voxels of the layer's own dimensions, so it can be added to a state of any other.
    """
    dimensions = {axis: [size / 1e9, "m"] for axis, size in zip("xyz", nml.voxel_size_nm_xyz, strict=True)}
    shift = np.asarray(shift_xyz)
    found: list[dict[str, Any]] = []
    for tree in nml.trees:
        places = (voxel_centres(tree.positions_xyz) - shift).tolist()
        for node, place in zip(tree.node_ids.tolist(), places, strict=True):
            text = " · ".join(filter(None, [tree.name, nml.comments.get(node, "")]))
            found.append({"type": "point", "id": f"node-{tree.id}-{node}", "point": place, "description": text})
        for a, b in tree.edges.tolist():
            ends = {"pointA": places[a], "pointB": places[b]}
            identity = f"edge-{tree.id}-{tree.node_ids[a]}-{tree.node_ids[b]}"
            found.append({"type": "line", "id": identity, "description": tree.name, **ends})
    for box, (low, high) in nml.boxes.items():
        ends = {"pointA": (low - shift).tolist(), "pointB": (high - shift).tolist()}
        found.append({"type": "axis_aligned_bounding_box", "id": f"box-{box}", "description": box, **ends})
    source = {"url": "local://annotations", "transform": {"outputDimensions": dimensions}}
    return {"type": "annotation", "name": name, "source": source, "annotations": found}
