"""Points as an annotation layer: seeds, places of decisions, whatever a table has positions of."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from happyneurons.errors import HappyError, UserError
from happyneurons.store.artifacts import Artifact

MAX_POINTS = 5_000
"""More would make a state that no browser takes as a link."""
_COLOR = "#ffdd00"


def points_layer(name: str, artifact: Artifact, voxel_size_nm_xyz: Sequence[float]) -> dict[str, Any] | None:
    """Annotation layer of the positions in a table; None if it has none.

    Positions are three columns x, y, z in voxels (of the table's voxel size, else of the given one) or
    x_nm, y_nm, z_nm, or one column …_xyz of triples in voxels. The other columns become the description.
    """
    columns, rows = _table(artifact)
    size = np.array(artifact.voxel_size_nm_xyz or voxel_size_nm_xyz, np.float64)
    found = _positions(columns, rows, size)
    if found is None:
        return None
    positions, used = found
    others = [i for i, column in enumerate(columns) if i not in used and column]
    annotations = [
        {
            "type": "point",
            "id": str(number),
            "point": [round(float(v), 3) for v in point],
            "description": ", ".join(f"{columns[i]} {row[i]}" for i in others if i < len(row)),
        }
        for number, (point, row) in enumerate(positions[:MAX_POINTS])
    ]
    dimensions = {axis: [float(nm) * 1e-9, "m"] for axis, nm in zip("xyz", size, strict=True)}
    return {
        "type": "annotation",
        "name": name,
        "source": {"url": "local://annotations", "transform": {"outputDimensions": dimensions}},
        "annotations": annotations,
        "annotationColor": _COLOR,
    }


def csv_points(path: Path) -> Artifact:
    """A CSV file with a header line as a table of points. Raises UserError if it has no positions."""
    try:
        with path.open(newline="") as file:
            lines = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"points {path}: {getattr(error, 'strerror', None) or error}") from None
    columns, rows = (lines[0], lines[1:]) if lines else ([], [])
    if not _numbers(columns, rows):
        raise UserError(f"points {path}: expected a header line with x, y, z (voxels) or x_nm, y_nm, z_nm, and numbers")
    uri = path.resolve().as_uri()
    properties = {"columns": [c.strip() for c in columns], "rows": rows, "external": True}
    return Artifact(kind="table", uri=uri, data_uri=uri, digest="", properties=properties)


def _numbers(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> bool:
    return _positions([c.strip() for c in columns], rows, np.ones(3)) is not None


def _table(artifact: Artifact) -> tuple[list[str], list[list[Any]]]:
    """(columns, rows). Empty ones if the document is not there, or another."""
    document: Mapping[str, Any] = artifact.properties
    if "rows" not in document:
        from happyneurons.viewer.published import document_of

        try:
            document = document_of(artifact, "table.json")
        except HappyError:
            return [], []
    return [str(c) for c in document.get("columns", [])], list(document.get("rows", []))


def _positions(
    columns: Sequence[str], rows: Sequence[Sequence[Any]], size_nm: NDArray[np.float64]
) -> tuple[list[tuple[NDArray[np.float64], Sequence[Any]]], set[int]] | None:
    """([(x y z in voxels, row), …], numbers of the columns they come from); rows without a place are left out."""
    scale = np.ones(3)
    if all(axis in columns for axis in "xyz"):
        used = [columns.index(axis) for axis in "xyz"]
    elif all(f"{axis}_nm" in columns for axis in "xyz"):
        used, scale = [columns.index(f"{axis}_nm") for axis in "xyz"], size_nm
    else:
        used = [i for i, c in enumerate(columns) if c.endswith("_xyz")][:1]
    found = []
    for row in rows if used else ():
        try:
            point = np.array([float(v) for v in (row[used[0]] if len(used) == 1 else [row[i] for i in used])])
        except (TypeError, ValueError, IndexError):
            continue
        if point.shape == (3,) and np.isfinite(point).all():
            found.append((point / scale, row))
    return (found, set(used)) if found else None
