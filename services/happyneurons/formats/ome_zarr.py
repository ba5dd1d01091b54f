"""OME-Zarr: read in 0.4 (Zarr 2) and 0.5 (Zarr 3), written in 0.5, sharded; plain Zarr arrays are read, too.

A translation says where the centre of the first voxel is (https://ngff.openmicroscopy.org): voxel v
of a volume with an offset lies at v × voxel size, and the first voxel of a coarser level half of
what its size has grown by further on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from happyneurons.errors import UserError
from happyneurons.formats.arrays import ArrayReader
from happyneurons.formats.base import Reader, ReadOptions, ReadPiece, VolumeInfo, Writer, pick_level, sizes
from happyneurons.formats.location import Location, inside, read_json
from happyneurons.formats.pieces import write_block
from happyneurons.formats.tensor import array_errors, open_array
from happyneurons.formats.units import in_nm
from happyneurons.formats.zarr3 import copy_shards, make_array, metadata, same_layout, zstd_level
from happyneurons.formats.zarr3_shards import Shards
from happyneurons.store.documents import Store
from happyneurons.store.triples import Triple, triple

NGFF = "0.5"


def open_reader(location: Location, options: ReadOptions) -> ArrayReader:
    store = location.store()
    base = f"{location.inner}/" if location.inner else ""
    where = str(location)
    group, driver = _attributes(store, base, where)
    if group is None:
        pick_level(options.mip, 1, where)
        return _plain(store.url(base.rstrip("/")), driver, options, location)
    scales = group.get("multiscales")
    if not scales:
        names = ", ".join(store.folders(base)[:20]) or "nothing"
        raise UserError(f"{where}: a Zarr group without images of its own; name what is inside: ?NAME ({names})")
    try:
        return _level(store, base, driver, scales[0], group, options, where)
    except (LookupError, TypeError, ValueError) as error:
        raise UserError(f"{where}: its OME-Zarr metadata is not understood ({error!r})") from None


def _attributes(store: Store, base: str, where: str) -> tuple[dict[str, Any] | None, str]:
    """(OME attributes of a group, or None for an array; tensorstore's driver). Raises UserError."""
    document = read_json(store, f"{base}zarr.json")
    if document is not None:
        if document.get("node_type") == "array":
            return None, "zarr3"
        attributes = document.get("attributes", {})
        return dict(attributes.get("ome", attributes)), "zarr3"
    if read_json(store, f"{base}.zarray") is not None:
        return None, "zarr"
    document = read_json(store, f"{base}.zattrs")
    if document is None and read_json(store, f"{base}.zgroup") is None:
        raise UserError(f"{where}: no Zarr array or group there (zarr.json, .zgroup)")
    return document or {}, "zarr"


def _plain(uri: str, driver: str, options: ReadOptions, location: Location) -> ArrayReader:
    array = open_array(uri, driver, options.threads)
    names = [str(n) for n in array.domain.labels]
    if not set("zyx") <= set(names):
        names = ["c", "z", "y", "x"][-len(names) :] if len(names) in (3, 4) else names
    return ArrayReader(
        str(location), array, names, options, first_zyx=(0, 0, 0), voxel_size_nm_xyz=(1.0, 1.0, 1.0)
    )  # fmt: skip


def _level(
    store: Store, base: str, driver: str, scale: dict[str, Any], group: dict[str, Any], options: ReadOptions, where: str
) -> ArrayReader:
    axes = [a if isinstance(a, str) else a["name"] for a in scale["axes"]]
    units = [None if isinstance(a, str) else a.get("unit") for a in scale["axes"]]
    levels = scale["datasets"]
    level = levels[pick_level(options.mip, len(levels), where)]
    path = inside(str(level["path"]), f"{where}: the path of a level")
    array = open_array(store.url(base + path), driver, options.threads)
    size, shift = _transform(level, scale, len(axes))
    finest, _ = _transform(levels[0], scale, len(axes))
    order = [axes.index(name) for name in "zyx"]
    nm = [in_nm(units[i], where) for i in order]
    first = triple(round((shift[i] - (size[i] - finest[i]) / 2) / size[i]) for i in order)
    return ArrayReader(
        where, array, axes, options, first_zyx=first,
        voxel_size_nm_xyz=sizes([size[i] * n for i, n in zip(order, nm, strict=True)][::-1]),
        labels=True if "image-label" in group else None,
    )  # fmt: skip


def _transform(level: dict[str, Any], scale: dict[str, Any], axes: int) -> tuple[list[float], list[float]]:
    """(scale, translation) of a level, each along every axis: its own transformations, then those of all levels."""
    size, shift = [1.0] * axes, [0.0] * axes
    for step in [*level.get("coordinateTransformations", []), *scale.get("coordinateTransformations", [])]:
        if step["type"] == "scale":
            size = [a * float(b) for a, b in zip(size, step["scale"], strict=True)]
            shift = [a * float(b) for a, b in zip(shift, step["scale"], strict=True)]
        elif step["type"] == "translation":
            shift = [a + float(b) for a, b in zip(shift, step["translation"], strict=True)]
        elif step["type"] != "identity":
            raise ValueError(f"transformation {step['type']}")
    return size, shift


class OmeZarrWriter(Writer):
    format, title = "ome-zarr", "OME-Zarr"

    @cached_property
    def _store(self) -> Store:
        return Store("/".join(filter(None, (self.location.root, self.location.inner))))

    @cached_property
    def _arrays(self) -> dict[int, Any]:
        return {}

    def _array(self, level: int) -> Any:
        if level not in self._arrays:
            info, unit = self.levels[level], self.unit_zyx(level)
            document = metadata(
                info.shape_zyx, unit, (min(self.options.chunk_px, unit[0]),) * 3, info.dtype, "zyx",
                level=zstd_level(self, level),
            )  # fmt: skip
            self._arrays[level] = make_array(self._store.url(str(level)), document, self.options.threads)
        return self._arrays[level]

    def occupied(self) -> bool:
        return any(self._store.exists(name) for name in ("zarr.json", ".zattrs", ".zgroup", ".zarray"))

    def prepare(self) -> None:
        for level in range(len(self.levels)):
            self._array(level)
        if self.location.inner:  # the groups above
            root = self.location.target()
            parts = self.location.inner.split("/")
            for depth in range(len(parts)):
                path = "/".join([*parts[:depth], "zarr.json"])
                if not root.exists(path):
                    root.put_json(path, {"zarr_format": 3, "node_type": "group", "attributes": {}})
        self._store.put_json("zarr.json", {"zarr_format": 3, "node_type": "group", "attributes": {"ome": self._ome()}})

    def _ome(self) -> dict[str, Any]:
        finest = self.levels[0]
        datasets = [
            {"path": str(i), "coordinateTransformations": _transformations(info, finest)}
            for i, info in enumerate(self.levels)
        ]
        axes = [{"name": name, "type": "space", "unit": "nanometer"} for name in "zyx"]
        method = {"type": "mode" if finest.labels else "mean"} if len(self.levels) > 1 else {}
        name = (self.location.inner or self.location.name).rpartition("/")[2]
        document: dict[str, Any] = {
            "version": NGFF,
            "multiscales": [{"name": name, "axes": axes, "datasets": datasets, **method}],
        }
        if finest.labels:
            document["image-label"] = {}
        return document

    def unit_zyx(self, level: int) -> Triple:
        """A shard: what one file holds, no larger than the volume needs."""
        chunk, longest = self.options.chunk_px, max(self.levels[level].shape_zyx)
        chunks = min(max(1, self.options.shard_px // chunk), -(-longest // chunk))
        return triple((chunk * chunks,) * 3)

    def piece_zyx(self, level: int) -> Triple:
        return (self._shards(level).piece_px,) * 3

    def write(self, level: int, start_zyx: Sequence[int], block_zyx: np.ndarray) -> None:
        write_block(self, level, start_zyx, block_zyx)

    def write_from(self, level: int, start_zyx: Triple, stop_zyx: Triple, read: ReadPiece) -> None:
        self._shards(level).write(start_zyx, stop_zyx, read)

    def _shards(self, level: int) -> Shards:
        info, unit = self.levels[level], self.unit_zyx(level)[0]
        return Shards(
            self._store, str(level), unit, min(self.options.chunk_px, unit), info.dtype, zstd_level(self, level),
            info.start_zyx, threads=self.options.threads,
        )  # fmt: skip

    def adopt(
        self,
        reader: Reader,
        at_source_zyx: Sequence[int],
        start_zyx: Sequence[int],
        shape: Sequence[int],
        check: Callable[[], object],
    ) -> bool:
        if not isinstance(reader, ArrayReader) or not reader.plain:
            return False
        low = np.subtract(start_zyx, self.levels[0].start_zyx)
        if (low != np.subtract(at_source_zyx, reader.first_zyx)).any():
            return False
        if not same_layout(reader.array, self._array(0)):
            return False
        check()
        with array_errors(str(self.location), start_zyx, np.add(start_zyx, shape).tolist()):
            copy_shards(reader.array, self._array(0), low.tolist(), (low + shape).tolist())
        return True

    def read(self, level: int, start_zyx: Sequence[int], stop_zyx: Sequence[int]) -> np.ndarray:
        low = self.levels[level].start_zyx
        box = tuple(slice(int(a) - o, int(b) - o) for a, b, o in zip(start_zyx, stop_zyx, low, strict=True))
        with array_errors(str(self.location), start_zyx, stop_zyx):
            return np.asarray(self._array(level)[box].read().result())


def _transformations(info: VolumeInfo, finest: VolumeInfo) -> list[dict[str, Any]]:
    size, base = info.voxel_size_nm_xyz[::-1], finest.voxel_size_nm_xyz[::-1]
    shift = [a * s + (s - b) / 2 for a, s, b in zip(info.start_zyx, size, base, strict=True)]
    return [{"type": "scale", "scale": list(size)}, {"type": "translation", "translation": shift}]
