"""WEBKNOSSOS datasets: a folder with datasource-properties.json and a folder for each layer, as WKW or Zarr 3.

Coordinates are absolute and begin at 0 in both: files and shards lie on a grid from the origin, the
layer's bounding box says which voxels count. A layer of a dataset is named `DATASET?LAYER`. Writing a
layer into a dataset leaves its other layers as they are.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from happyneurons.errors import UserError
from happyneurons.formats.arrays import ArrayReader
from happyneurons.formats.base import (
    Reader,
    ReadOptions,
    ReadPiece,
    Sizes,
    VolumeInfo,
    Writer,
    pick_channel,
    sizes,
)
from happyneurons.formats.blocks import cubes
from happyneurons.formats.location import Location, inside, read_json
from happyneurons.formats.pieces import write_block
from happyneurons.formats.wkw import BLOCK_PX, LZ4, RAW, Header, encode_file, file_path, read_box, read_header
from happyneurons.store.documents import Store
from happyneurons.store.triples import Triple, triple

if TYPE_CHECKING:
    from happyneurons.formats.zarr3_shards import Shards

PROPERTIES = "datasource-properties.json"
_ELEMENTS = {"float32": "float", "float64": "double"}
_LAYER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


def open_reader(location: Location, options: ReadOptions) -> Reader:
    store, where = location.store(), str(location)
    properties = read_json(store, PROPERTIES)
    if not isinstance(properties, dict):
        raise UserError(f"{where}: not a WEBKNOSSOS dataset (no {PROPERTIES})")
    try:
        layer = _pick_layer(properties["dataLayers"], location)
        scale, mag, path = _pick_mag(properties, layer, options.mip, where)
        box = layer["boundingBox"]
        low = [int(v) for v in box["topLeft"]]
        high = [a + int(box[n]) for a, n in zip(low, ("width", "height", "depth"), strict=True)]
        kind, labels = str(layer["dataFormat"]), layer["category"] == "segmentation"
    except (LookupError, TypeError, ValueError) as error:
        raise UserError(f"{where}: its {PROPERTIES} is not understood ({error!r})") from None
    start = triple(a // m for a, m in zip(low[::-1], mag[::-1], strict=True))
    stop = triple(-(-b // m) for b, m in zip(high[::-1], mag[::-1], strict=True))
    size = sizes(s * m for s, m in zip(scale, mag, strict=True))
    if kind == "wkw":
        return WkwReader(where, store, path, options, (start, stop), size, labels)
    if kind == "zarr3":
        from happyneurons.formats.tensor import open_array

        array = open_array(store.url(path), "zarr3", options.threads)
        names = [str(n) for n in array.domain.labels]
        axes = names if set("xyz") <= set(names) else ["c", "x", "y", "z"][-len(array.shape) :]
        return ArrayReader(
            where, array, axes, options, first_zyx=(0, 0, 0), voxel_size_nm_xyz=size, labels=labels, box=(start, stop)
        )
    raise UserError(f"{where}: its data is {kind}; open the layer's folder itself, {store.url(path)}")


def _pick_layer(layers: Sequence[dict[str, Any]], location: Location) -> dict[str, Any]:
    names = [str(layer["name"]) for layer in layers]
    if location.inner in names:
        return layers[names.index(location.inner)]
    if location.inner or len(layers) != 1:
        problem = f"it has no layer {location.inner!r}" if location.inner else f"it has {len(layers)} layers"
        raise UserError(f"{location.root}: {problem}; name one: ?NAME ({', '.join(names)})")
    return layers[0]


def _pick_mag(
    properties: dict[str, Any], layer: dict[str, Any], mip: int, where: str
) -> tuple[Sizes, tuple[int, int, int], str]:
    """(nm of a voxel at full resolution, magnification, both xyz; folder of that magnification)."""
    from happyneurons.formats.units import in_nm

    scale = properties["scale"]
    unit = in_nm(scale.get("unit"), where) if isinstance(scale, dict) else 1.0
    factor = scale["factor"] if isinstance(scale, dict) else scale
    found = []
    for entry in layer.get("mags") or layer["wkwResolutions"]:
        mag = entry["mag"] if "mag" in entry else entry["resolution"]
        mag = [mag] * 3 if isinstance(mag, int) else mag
        found.append((triple(mag), entry.get("path")))
    found.sort(key=lambda item: np.prod(item[0]))
    if mip >= len(found):
        raise UserError(f"{where}: there is no level {mip}; it has {len(found)} (0 is full resolution)")
    mag, path = found[mip]
    path = path or f"{layer['name']}/{_mag_name(mag)}"
    return sizes(float(f) * unit for f in factor), mag, inside(str(path), f"{where}: the path of magnification {mag}")


def _mag_name(mag: Sequence[int]) -> str:
    return str(mag[0]) if len(set(mag)) == 1 else "-".join(map(str, mag))


class WkwReader(Reader):
    def __init__(
        self,
        where: str,
        store: Store,
        folder: str,
        options: ReadOptions,
        box: tuple[Triple, Triple],
        voxel_size_nm_xyz: Sizes,
        labels: bool,
    ) -> None:
        self.uri, self._store, self._folder = where, store, folder
        self._header = read_header(store, folder)
        self._channel = pick_channel(options, self._header.channels, where)
        self.dtype, self.labels = self._header.dtype, labels
        self.start_zyx, self.stop_zyx = box
        self.voxel_size_nm_xyz = voxel_size_nm_xyz

    def read(self, start_zyx: Sequence[int], stop_zyx: Sequence[int]) -> np.ndarray:
        return read_box(self._store, self._folder, self._header, start_zyx, stop_zyx, self._channel)


class _DatasetWriter(Writer):
    """What both ways to store a layer share."""

    data_format: ClassVar[Literal["wkw", "zarr3"]]
    negative = False
    dtypes = ("uint8", "uint16", "uint32", "uint64", "float32", "float64", "int8", "int16", "int32", "int64")

    def check(self) -> None:
        super().check()
        if not _LAYER.fullmatch(self.layer):
            raise UserError(f"target {self.location}: a layer's name has letters, digits, _, - and . only")
        if self.options.shard_px < BLOCK_PX or self.options.shard_px & (self.options.shard_px - 1):
            raise UserError(f"shard_px: {self.options.shard_px}; WEBKNOSSOS needs a power of two of {BLOCK_PX} or more")

    @property
    def layer(self) -> str:
        return self.location.inner or ("segmentation" if self.levels[0].labels else "color")

    @cached_property
    def _store(self) -> Store:
        return self.location.target()

    def mag(self, level: int) -> Triple:
        """Magnification of a level, xyz."""
        finest, own = self.levels[0].voxel_size_nm_xyz, self.levels[level].voxel_size_nm_xyz
        return triple(round(a / b) for a, b in zip(own, finest, strict=True))

    def folder(self, level: int) -> str:
        return f"{self.layer}/{_mag_name(self.mag(level))}"

    def occupied(self) -> bool:
        listed = (read_json(self._store, PROPERTIES) or {}).get("dataLayers", [])
        if any(layer.get("name") == self.layer for layer in listed):
            return True
        return next(iter(self._store.list(self.layer)), None) is not None

    def grid_zyx(self, level: int) -> Triple:
        return (0, 0, 0)

    def edge_px(self, level: int) -> int:
        """Edge of what a file holds: no larger than the volume needs."""
        edge = BLOCK_PX
        while edge < min(self.options.shard_px, max(self.levels[level].stop_zyx)):
            edge *= 2
        return edge

    def unit_zyx(self, level: int) -> Triple:
        return triple((self.edge_px(level),) * 3)

    def uri(self) -> str:
        return f"{self.location.root}?{self.layer}"

    def close(self, largest: int) -> None:
        """Enter the layer into the dataset's description."""
        info = self.levels[0]
        old = read_json(self._store, PROPERTIES) or {}
        layer: dict[str, Any] = {
            "name": self.layer,
            "category": "segmentation" if info.labels else "color",
            "boundingBox": {
                "topLeft": list(info.start_zyx[::-1]),
                **dict(zip(("depth", "height", "width"), info.shape_zyx, strict=True)),
            },
            "dataFormat": self.data_format,
            "elementClass": _ELEMENTS.get(info.dtype.name, info.dtype.name),
            "numChannels": 1,
            "mags": [self._mag_entry(level) for level in range(len(self.levels))],
        }
        if info.labels:
            layer["largestSegmentId"] = largest
        scale = {"factor": list(info.voxel_size_nm_xyz), "unit": "nanometer"}
        others = [entry for entry in old.get("dataLayers", []) if entry.get("name") != self.layer]
        self._store.put_json(
            PROPERTIES,
            {
                "id": old.get("id", {"name": self.location.name, "team": ""}),
                **{k: v for k, v in old.items() if k not in ("id", "scale", "dataLayers")},
                "scale": old.get("scale", scale),
                "dataLayers": [*others, layer],
                "version": 1,
            },
        )

    def _mag_entry(self, level: int) -> dict[str, Any]:
        return {
            "mag": list(self.mag(level)),
            "path": f"./{self.folder(level)}",
            "axisOrder": {"c": 0, "x": 1, "y": 2, "z": 3},
        }

    def prepare(self) -> None:
        scale = (read_json(self._store, PROPERTIES) or {}).get("scale")
        if scale is not None:
            from happyneurons.formats.units import in_nm

            unit = in_nm(scale.get("unit"), str(self.location)) if isinstance(scale, dict) else 1.0
            there = sizes(float(f) * unit for f in (scale["factor"] if isinstance(scale, dict) else scale))
            if not np.allclose(there, self.levels[0].voxel_size_nm_xyz, rtol=1e-6):
                raise UserError(
                    f"target {self.location}: the dataset has voxels of {there} nm, the volume of "
                    f"{self.levels[0].voxel_size_nm_xyz} nm; all layers of a dataset share one size"
                )


class WkwWriter(_DatasetWriter):
    format, title, data_format = "webknossos-wkw", "WEBKNOSSOS (WKW)", "wkw"

    def _header(self, level: int) -> Header:
        kind = LZ4 if self.options.compress else RAW
        return Header(BLOCK_PX, self.edge_px(level) // BLOCK_PX, kind, self.levels[level].dtype)

    def prepare(self) -> None:
        super().prepare()
        for level in range(len(self.levels)):
            self._store.put(f"{self.folder(level)}/header.wkw", self._header(level).pack())

    def write(self, level: int, start_zyx: Sequence[int], block_zyx: np.ndarray) -> None:
        header = self._header(level)
        for index, cube in cubes(block_zyx, start_zyx, header.file_px, header.dtype):
            self._store.put(file_path(self.folder(level), index), encode_file(cube, header))

    def read(self, level: int, start_zyx: Sequence[int], stop_zyx: Sequence[int]) -> np.ndarray:
        return read_box(self._store, self.folder(level), self._header(level), start_zyx, stop_zyx)

    def _mag_entry(self, level: int) -> dict[str, Any]:
        return {**super()._mag_entry(level), "cubeLength": self.edge_px(level)}


class Zarr3Writer(_DatasetWriter):
    format, title, data_format = "webknossos-zarr3", "WEBKNOSSOS (Zarr 3)", "zarr3"

    @cached_property
    def _arrays(self) -> dict[int, Any]:
        return {}

    def _array(self, level: int) -> Any:
        from happyneurons.formats.zarr3 import make_array, metadata, zstd_level

        if level not in self._arrays:
            info, edge = self.levels[level], self.edge_px(level)
            shape = [-(-n // edge) * edge for n in info.stop_zyx[::-1]]
            chunk = BLOCK_PX
            document = metadata(
                [1, *shape], [1, *[edge] * 3], [1, *[chunk] * 3], info.dtype, "cxyz",
                level=zstd_level(self, level), fortran=True,
            )  # fmt: skip
            self._arrays[level] = make_array(self._store.url(self.folder(level)), document, self.options.threads)
        return self._arrays[level]

    def prepare(self) -> None:
        super().prepare()
        for level in range(len(self.levels)):
            self._array(level)
        for path, attributes in (("", {}), (f"{self.layer}/", {"ome": self._ome()})):
            if path or not self._store.exists("zarr.json"):
                document = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
                self._store.put_json(f"{path}zarr.json", document)

    def _ome(self) -> dict[str, Any]:
        """For readers of OME-Zarr that open a layer's folder."""
        axes = [{"name": "c", "type": "channel"}]
        axes += [{"name": name, "type": "space", "unit": "nanometer"} for name in "xyz"]
        datasets = [
            {"path": _mag_name(self.mag(i)), "coordinateTransformations": _centred(info, self.levels[0])}
            for i, info in enumerate(self.levels)
        ]
        return {"version": "0.5", "multiscales": [{"name": self.layer, "axes": axes, "datasets": datasets}]}

    def piece_zyx(self, level: int) -> Triple:
        return (self._shards(level).piece_px,) * 3

    def write(self, level: int, start_zyx: Sequence[int], block_zyx: np.ndarray) -> None:
        write_block(self, level, start_zyx, block_zyx)

    def write_from(self, level: int, start_zyx: Triple, stop_zyx: Triple, read: ReadPiece) -> None:
        self._shards(level).write(start_zyx, stop_zyx, read)

    def _shards(self, level: int) -> Shards:
        from happyneurons.formats.zarr3 import zstd_level
        from happyneurons.formats.zarr3_shards import Shards

        return Shards(
            self._store, self.folder(level), self.edge_px(level), BLOCK_PX, self.levels[level].dtype,
            zstd_level(self, level), (0, 0, 0), cxyz=True, threads=self.options.threads,
        )  # fmt: skip

    def read(self, level: int, start_zyx: Sequence[int], stop_zyx: Sequence[int]) -> np.ndarray:
        from happyneurons.formats.tensor import array_errors

        box = tuple(slice(int(a), int(b)) for a, b in zip(start_zyx, stop_zyx, strict=True))
        with array_errors(str(self.location), start_zyx, stop_zyx):
            return np.ascontiguousarray(np.asarray(self._array(level)[(0, *box[::-1])].read().result()).T)


def _centred(info: VolumeInfo, finest: VolumeInfo) -> list[dict[str, Any]]:
    """Scale and translation of a level whose array begins at coordinate 0 (see ome_zarr)."""
    size = list(info.voxel_size_nm_xyz)
    shift = [(a - b) / 2 for a, b in zip(size, finest.voxel_size_nm_xyz, strict=True)]
    steps: list[dict[str, Any]] = [{"type": "scale", "scale": [1.0, *size]}]
    if any(shift):
        steps.append({"type": "translation", "translation": [0.0, *shift]})
    return steps
