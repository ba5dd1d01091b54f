"""Points that people set, read from the files that their tools write.

CSV        a header with x, y, z (voxels) or x_nm, y_nm, z_nm; optional id: points of one object
.json      a Neuroglancer state: point annotations of its local annotation layers
.nml       WEBKNOSSOS or KNOSSOS: every node; nodes of one tree are of one object
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from happyneurons.annotations.nml import read_points_nm
from happyneurons.errors import NotFoundError, UserError
from happyneurons.store.documents import file_at


@dataclass(frozen=True)
class Points:
    """zyx: (n, 3) int64 voxels. object: (n,) int64, equal for points of one object."""

    zyx: NDArray[np.int64]
    object: NDArray[np.int64]


def read_file(uri: str) -> bytes:
    """Bytes of a file on any store. Raises UserError if it is not there."""
    store, name = file_at(uri)
    try:
        return store.get(name)
    except NotFoundError:
        raise UserError(f"points {uri}: there is no such file") from None


def read_points(uri: str, voxel_size_nm_xyz: Sequence[float]) -> Points:
    """Points of a file, in voxels of the given size. Raises UserError if it is none of the above, or holds none."""
    kind = uri.rsplit(".", 1)[-1].lower()
    data = read_file(uri)
    if kind == "nml":
        positions, objects = _nml(uri, data, voxel_size_nm_xyz)
    elif kind == "json":
        positions, objects = _neuroglancer(uri, data, voxel_size_nm_xyz)
    elif kind == "csv":
        positions, objects = _csv(uri, data, voxel_size_nm_xyz)
    else:
        raise UserError(f"points {uri}: the name ends in .{kind}; .csv, .json (Neuroglancer) or .nml was expected")
    if not len(positions):
        raise UserError(f"points {uri}: there are no points in it")
    return Points(np.floor(positions).astype(np.int64)[:, ::-1], objects)


def _csv(uri: str, data: bytes, size_xyz: Sequence[float]) -> tuple[np.ndarray, NDArray[np.int64]]:
    try:
        rows = list(csv.DictReader(io.StringIO(data.decode("utf-8-sig")), skipinitialspace=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"points {uri}: not a CSV file ({error})") from None
    columns = set(rows[0]) if rows else set()
    if {"x", "y", "z"} <= columns:
        names, unit = ("x", "y", "z"), np.ones(3)
    elif {"x_nm", "y_nm", "z_nm"} <= columns:
        names, unit = ("x_nm", "y_nm", "z_nm"), np.asarray(size_xyz, float)
    elif not rows:
        return np.zeros((0, 3)), np.zeros(0, np.int64)
    else:
        raise UserError(
            f"points {uri}: it has the columns {', '.join(str(c) for c in rows[0])}; x, y, z (voxels) or x_nm, y_nm, "
            "z_nm were expected in its first line"
        )
    positions = np.empty((len(rows), 3))
    for number, row in enumerate(rows):
        try:
            positions[number] = [float(row[name]) for name in names]
        except (TypeError, ValueError):
            raise UserError(f"points {uri}: line {number + 2}: {', '.join(names)} are not three numbers") from None
    if not np.isfinite(positions).all():
        raise UserError(f"points {uri}: not all coordinates are finite numbers")
    if "id" not in columns:
        return positions / unit, np.arange(len(rows))
    _, objects = np.unique([row["id"] for row in rows], return_inverse=True)
    return positions / unit, objects.astype(np.int64)


def _neuroglancer(uri: str, data: bytes, size_xyz: Sequence[float]) -> tuple[np.ndarray, NDArray[np.int64]]:
    """Point annotations of a state, in the units of its or its layer's dimensions."""
    try:
        state = json.loads(data)
        layers = [layer for layer in state["layers"] if layer.get("type") == "annotation"]
        found: list[np.ndarray] = []
        for layer in layers:
            scale = _scales_nm(_dimensions(layer) or state.get("dimensions"))
            for annotation in layer.get("annotations", ()):
                if annotation.get("type", "point") == "point":
                    point = [float(v) for v in annotation["point"][:3]]
                    found.append(np.asarray(point) * scale / np.asarray(size_xyz, float))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"points {uri}: not a Neuroglancer state with points ({error!r})") from None
    return np.array(found, float).reshape(-1, 3), np.arange(len(found))


def _dimensions(layer: dict[str, Any]) -> Any:
    """Dimensions of a layer's own source, if it says them."""
    source = layer.get("source")
    sources = source if isinstance(source, list) else [source]
    for one in sources:
        if isinstance(one, dict) and "outputDimensions" in one.get("transform", {}):
            return one["transform"]["outputDimensions"]
    return None


def _scales_nm(dimensions: dict[str, Any]) -> np.ndarray:
    factor = {"m": 1e9, "mm": 1e6, "um": 1e3, "µm": 1e3, "nm": 1.0}
    return np.array([float(dimensions[axis][0]) * factor[dimensions[axis][1]] for axis in "xyz"])


def _nml(uri: str, data: bytes, size_xyz: Sequence[float]) -> tuple[np.ndarray, NDArray[np.int64]]:
    positions_nm, trees = read_points_nm(data, f"points {uri}")
    return positions_nm / np.asarray(size_xyz, float), trees
