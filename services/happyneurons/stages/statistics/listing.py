"""The tables as they are read: CSV in parts, the largest segments, Neuroglancer's list, totals.

segments/{part:06d}.csv, contacts/{part:06d}.csv   sorted by id over all parts; a part without rows has no file
table.json                                         the largest segments, the same columns
segment_properties/info                            Neuroglancer's list of the largest segments
summary.json                                       totals, files with their first and last id
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from happyneurons.stages.statistics.tables import CONTACTS, SEGMENTS, ids_of
from happyneurons.store.documents import Store

SEGMENT_COLUMNS = (
    "segment", "voxels", "volume_nm3", "min_x", "min_y", "min_z", "max_x", "max_y", "max_z",
    "centroid_x", "centroid_y", "centroid_z", "background_area_nm2", "contact_area_nm2",
)  # fmt: skip
CONTACT_COLUMNS = ("segment_a", "segment_b", "faces", "area_nm2", "centroid_x", "centroid_y", "centroid_z")
LISTED_SEGMENTS = 100_000  # in Neuroglancer's list, which the browser reads whole
SHOWN_SEGMENTS = 1_000  # in table.json
Size = tuple[float, float, float]


def span(ids: NDArray[np.uint64]) -> dict[str, int]:
    """first and last of ascending ids, nothing if there are none."""
    return {"first": int(ids[0]), "last": int(ids[-1])} if len(ids) else {}


def write_segments(store: Store, part: int, rows: NDArray[np.int64], voxel_nm_xyz: Size) -> int:
    """A part of the segments' table, and its largest ones for `write_summary`; returns bytes. rows: of SEGMENTS."""
    areas = _face_areas_nm2(voxel_nm_xyz)
    voxels = rows[:, 1]
    columns = [
        ids_of(SEGMENTS, rows)[:, 0], voxels, voxels * float(np.prod(voxel_nm_xyz)),
        *(-rows[:, 11:14]).T, *(rows[:, 14:17] + 1).T, *(rows[:, 2:5] / voxels[:, np.newaxis]).T,
        _areas(rows[:, 5:8], areas), _areas(rows[:, 8:11], areas),
    ]  # fmt: skip
    named = dict(zip(SEGMENT_COLUMNS, columns, strict=True))
    best = _largest(named, LISTED_SEGMENTS)
    store.put_arrays(_largest_path(part), **{name: column[best] for name, column in named.items()})
    return _write(store, f"segments/{part:06d}.csv", named) if len(rows) else 0


def write_contacts(store: Store, part: int, rows: NDArray[np.int64], voxel_nm_xyz: Size) -> int:
    """A part of the contacts' table; returns bytes. rows: of CONTACTS."""
    areas = _face_areas_nm2(voxel_nm_xyz)
    faces = rows[:, 2:5]
    area = _areas(faces, areas)
    # Middle of the surface: faces count by their area.
    middle = sum(rows[:, 5 + 3 * k : 8 + 3 * k] * (areas[k] / 2) for k in range(3)) / area[:, np.newaxis]
    columns = [*ids_of(CONTACTS, rows).T, faces.sum(axis=1), area, *np.asarray(middle).T]
    named = dict(zip(CONTACT_COLUMNS, columns, strict=True))
    return _write(store, f"contacts/{part:06d}.csv", named) if len(rows) else 0


def _face_areas_nm2(voxel_nm_xyz: Size) -> tuple[float, float, float]:
    """Areas of a voxel's faces across x, y and z."""
    x, y, z = voxel_nm_xyz
    return (y * z, x * z, x * y)


def _areas(faces_xyz: NDArray[np.int64], areas: Sequence[float]) -> NDArray[np.float64]:
    return np.asarray(faces_xyz[:, 0] * areas[0] + faces_xyz[:, 1] * areas[1] + faces_xyz[:, 2] * areas[2])


def _largest_path(part: int) -> str:
    return f"_largest/{part:06d}.npz"


def _largest(columns: Mapping[str, NDArray[Any]], count: int) -> NDArray[np.int64]:
    return np.lexsort((columns["segment"], -columns["voxels"]))[:count]


def _write(store: Store, path: str, columns: Mapping[str, NDArray[Any]]) -> int:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*(column.tolist() for column in columns.values()), strict=True))
    data = text.getvalue().encode()
    store.put(path, data)
    return len(data)


def write_summary(
    store: Store,
    segments: Sequence[tuple[str, Mapping[str, Any]]],
    contacts: Sequence[tuple[str, Mapping[str, Any]]] | None,
    about: Mapping[str, Any],
) -> list[int]:
    """Write what is small; returns the largest segments' ids. segments, contacts: (part, its figures)."""
    best = {name: np.zeros(0) for name in SEGMENT_COLUMNS}
    for part, _ in segments:
        found = store.get_arrays(_largest_path(int(part)))
        both = {name: np.concatenate([best[name].astype(a.dtype), a]) for name, a in found.items()}
        order = _largest(both, LISTED_SEGMENTS)
        best = {name: both[name][order] for name in SEGMENT_COLUMNS}
    summary: dict[str, Any] = {
        **about,
        "segments": sum(int(data["rows"]) for _, data in segments),
        "voxels": sum(int(data["voxels"]) for _, data in segments),
        "dropped_segments": sum(int(data["dropped"]) for _, data in segments),
        "segment_files": _files("segments", segments),
    }
    if not summary["segment_files"]:
        _write(store, "segments/000000.csv", {name: np.zeros(0) for name in SEGMENT_COLUMNS})
    if contacts is not None:
        summary["contacts"] = sum(int(data["rows"]) for _, data in contacts)
        summary["contact_faces"] = sum(int(data["faces"]) for _, data in contacts)
        summary["contact_files"] = _files("contacts", contacts)
        if not summary["contact_files"]:
            _write(store, "contacts/000000.csv", {name: np.zeros(0) for name in CONTACT_COLUMNS})
    store.put_json("summary.json", summary)
    rows = zip(*(column[:SHOWN_SEGMENTS].tolist() for column in best.values()), strict=True)
    store.put_json("table.json", {"columns": list(SEGMENT_COLUMNS), "rows": [list(row) for row in rows]})
    store.put_json("segment_properties/info", _segment_properties(best))
    return [int(v) for v in best["segment"][:50]]


def _files(folder: str, parts: Sequence[tuple[str, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    return [
        {"file": f"{folder}/{part}.csv", "rows": data["rows"], "first": data["first"], "last": data["last"]}
        for part, data in parts
        if data["rows"]
    ]


def _segment_properties(columns: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """Neuroglancer's list (google/neuroglancer, segment_properties.md), in µm: its numbers are float32."""

    def number(name: str, description: str, values: NDArray[Any]) -> dict[str, Any]:
        float32 = [float(v) for v in values.astype(np.float32)]
        return {"id": name, "type": "number", "data_type": "float32", "description": description, "values": float32}

    return {
        "@type": "neuroglancer_segment_properties",
        "inline": {
            "ids": [str(int(v)) for v in columns["segment"]],
            "properties": [
                number("volume_um3", "volume, µm³", columns["volume_nm3"] / 1e9),
                number(
                    "background_area_um2", "surface towards the background, µm²", columns["background_area_nm2"] / 1e6
                ),
                number("contact_area_um2", "surface towards other segments, µm²", columns["contact_area_nm2"] / 1e6),
            ],
        },
    }
