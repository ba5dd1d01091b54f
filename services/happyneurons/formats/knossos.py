"""KNOSSOS cubes: files of 128³ voxels, x fastest, below a folder for each magnification.

Images are 8 bit (`.raw`); labels are 64 bit, packed by Snappy in a zip (`.seg.sz.zip`). `knossos.conf`
says name, boundary and scale. Cubes lie on a grid from the origin, cubes that are not there are zeros.
Where a volume begins has no place in it: our writer leaves that in a file of its own, which KNOSSOS
does not look at (SIDECAR).
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import cramjam
import numpy as np

from happyneurons.errors import NotFoundError, UserError
from happyneurons.formats.base import Reader, ReadOptions, Sizes, Writer, pick_channel, sizes
from happyneurons.formats.blocks import cubes
from happyneurons.formats.damage import reading
from happyneurons.formats.location import Location, read_json
from happyneurons.store.documents import Store
from happyneurons.store.triples import Triple, triple

CUBE_PX = 128
SIDECAR = "happyneurons.json"
_LINE = re.compile(r'\s*(experiment name|boundary [xyz]|scale [xyz]|magnification)\s+"?([^";]*)"?\s*;')
_CUBE = re.compile(r"(.*)_x\d{4,}_y\d{4,}_z\d{4,}\.(raw|seg\.sz\.zip)")


def cube_path(name: str, mag: int, index_zyx: Sequence[int], suffix: str) -> str:
    z, y, x = index_zyx
    folder = f"mag{mag}/x{x:04d}/y{y:04d}/z{z:04d}"
    return f"{folder}/{name}_mag{mag}_x{x:04d}_y{y:04d}_z{z:04d}{suffix}"


@dataclass(frozen=True)
class Configuration:
    """What knossos.conf says of magnification 1."""

    name: str
    boundary_xyz: Triple
    scale_nm_xyz: Sizes

    @classmethod
    def parse(cls, text: str, where: str) -> Configuration:
        """Raises UserError."""
        found = dict(_LINE.findall(text))
        try:
            mag = int(found.get("magnification") or 1)
            boundary = triple(int(found[f"boundary {a}"]) * mag for a in "xyz")
            scale = sizes(float(found[f"scale {a}"]) / mag for a in "xyz")
            name = re.sub(r"_mag\d+$", "", found["experiment name"])
        except (KeyError, ValueError) as error:
            raise UserError(f"{where}: not understood ({error}); expected experiment name, boundary, scale") from None
        return cls(name, boundary, scale)

    def text(self, mag: int = 1) -> str:
        lines = [f'experiment name "{self.name}_mag{mag}";']
        lines += [f"boundary {a} {-(-n // mag)};" for a, n in zip("xyz", self.boundary_xyz, strict=True)]
        lines += [f"scale {a} {s * mag!r};" for a, s in zip("xyz", self.scale_nm_xyz, strict=True)]
        return "\n".join([*lines, f"magnification {mag};", ""])


def open_reader(location: Location, options: ReadOptions) -> KnossosReader:
    return KnossosReader(location, options)


class KnossosReader(Reader):
    def __init__(self, location: Location, options: ReadOptions) -> None:
        self.uri, self._store = str(location), location.store()
        names = ["knossos.conf", "mag1/knossos.conf"]
        text = next((t for t in map(self._find, names) if t is not None), None)
        if text is None:
            raise UserError(f"{self.uri}: no knossos.conf there, nor in mag1/")
        conf = Configuration.parse(text, f"{self.uri}: knossos.conf")
        mags = sorted(int(n[3:]) for n in self._store.folders("") if re.fullmatch(r"mag\d+", n))
        if options.mip >= len(mags):
            raise UserError(f"{self.uri}: there is no level {options.mip}; it has {len(mags)} (0 is full resolution)")
        self._mag = mags[options.mip]
        pick_channel(options, 1, self.uri)
        first = next((p for p in self._store.list(f"mag{self._mag}") if _CUBE.search(p)), None)
        side: dict[str, Any] = read_json(self._store, SIDECAR) or {}
        if first is None and not side:
            raise UserError(f"{self.uri}: no cubes (NAME_x0000_y0000_z0000.raw) in mag{self._mag}")
        # The name of the cubes counts, not that of the configuration: people rename the one, not the other.
        found = _CUBE.fullmatch(first.rpartition("/")[2]) if first else None
        self._prefix = found[1] if found else f"{conf.name}_mag{self._mag}"
        self.labels = found[2] != "raw" if found else side["kind"] == "segmentation"
        self._suffix = ".seg.sz.zip" if self.labels else ".raw"
        self.dtype = np.dtype("uint64" if self.labels else "uint8")
        low = [int(v) // self._mag for v in side.get("voxel_offset_xyz", (0, 0, 0))]
        self.start_zyx = triple(low[::-1])
        self.stop_zyx = triple(-(-n // self._mag) for n in conf.boundary_xyz[::-1])
        self.voxel_size_nm_xyz = sizes(s * self._mag for s in conf.scale_nm_xyz)

    def _find(self, path: str) -> str | None:
        try:
            return self._store.get(path).decode("utf-8", "replace")
        except NotFoundError:
            return None

    def read(self, start_zyx: Sequence[int], stop_zyx: Sequence[int]) -> np.ndarray:
        return read_cubes(self._store, self._mag, self._prefix, self._suffix, self.dtype, start_zyx, stop_zyx)


def read_cubes(
    store: Store,
    mag: int,
    prefix: str,
    suffix: str,
    dtype: np.dtype[Any],
    start_zyx: Sequence[int],
    stop_zyx: Sequence[int],
) -> np.ndarray:
    """(z, y, x) array of a box. prefix: of the cubes' names. Raises TaskError if a cube is damaged."""
    result = np.zeros([b - a for a, b in zip(start_zyx, stop_zyx, strict=True)], dtype)
    first = np.floor_divide(start_zyx, CUBE_PX)
    for index in np.ndindex(*(-(-np.asarray(stop_zyx) // CUBE_PX) - first)):
        at = first + index
        path = cube_path("", mag, at.tolist(), suffix).rpartition("/")[0] + "/" + prefix
        path += "_x{2:04d}_y{1:04d}_z{0:04d}".format(*at) + suffix
        corner = at * CUBE_PX
        low, high = np.maximum(start_zyx, corner), np.minimum(stop_zyx, corner + CUBE_PX)
        try:
            data = store.get(path)
        except NotFoundError:
            continue
        with reading(store.url(path), low.tolist(), high.tolist()):
            cube = decode_cube(data, dtype)
        part = cube[tuple(slice(*p) for p in zip(low - corner, high - corner, strict=True))]
        result[tuple(slice(*p) for p in zip(low - start_zyx, high - start_zyx, strict=True))] = part
    return result


def decode_cube(data: bytes, dtype: np.dtype[Any]) -> np.ndarray:
    """Raises ValueError, or whatever a decoder raises."""
    if dtype.itemsize == 8:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            data = bytes(cramjam.snappy.decompress_raw(archive.read(archive.namelist()[0])))
    if len(data) != CUBE_PX**3 * dtype.itemsize:
        raise ValueError(
            f"a cube of {len(data)} bytes instead of {CUBE_PX**3 * dtype.itemsize} ({CUBE_PX}³ voxels of {dtype}); "
            "cubes of other sizes or types are not read"
        )
    return np.frombuffer(data, dtype.newbyteorder("<")).reshape((CUBE_PX,) * 3)


def encode_cube(cube_zyx: np.ndarray, name: str) -> bytes:
    """A cube's file: labels (64 bit) are packed under `name`."""
    data = np.ascontiguousarray(cube_zyx).tobytes()
    if cube_zyx.dtype.itemsize == 1:
        return data
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        # A ZipInfo of its own: the same bytes at any time.
        archive.writestr(zipfile.ZipInfo(name), bytes(cramjam.snappy.compress_raw(data)), zipfile.ZIP_DEFLATED, 1)
    return file.getvalue()


class KnossosWriter(Writer):
    format, title = "knossos", "KNOSSOS"
    dtypes, label_dtypes = ("uint8",), ("uint64",)
    negative = False

    def check(self) -> None:
        super().check()
        for level in range(1, len(self.levels)):
            ratios = np.divide(self.levels[level].voxel_size_nm_xyz, self.levels[0].voxel_size_nm_xyz)
            if not np.allclose(ratios, 2**level):
                raise UserError(
                    f"target {self.location}: KNOSSOS's magnifications are the same along all axes, those of voxels of "
                    f"{self.levels[0].voxel_size_nm_xyz} nm would not be; set num_mips to 0"
                )

    @cached_property
    def _store(self) -> Store:
        return self.location.target()

    @property
    def _suffix(self) -> str:
        return ".seg.sz.zip" if self.levels[0].labels else ".raw"

    @property
    def _conf(self) -> Configuration:
        info = self.levels[0]
        name = re.sub(r"[^A-Za-z0-9.-]+", "-", self.location.name) or "volume"
        return Configuration(name, triple(info.stop_zyx[::-1]), info.voxel_size_nm_xyz)

    def occupied(self) -> bool:
        return any(self._store.exists(path) for path in ("knossos.conf", "mag1/knossos.conf"))

    def prepare(self) -> None:
        for level in range(len(self.levels)):
            self._store.put(f"mag{2**level}/knossos.conf", self._conf.text(2**level).encode())
        self._store.put("knossos.conf", self._conf.text().encode())
        info = self.levels[0]
        self._store.put_json(SIDECAR, {"voxel_offset_xyz": list(info.start_zyx[::-1]), "kind": info.kind})

    def unit_zyx(self, level: int) -> Triple:
        return (CUBE_PX, CUBE_PX, CUBE_PX)

    def grid_zyx(self, level: int) -> Triple:
        return (0, 0, 0)

    def write(self, level: int, start_zyx: Sequence[int], block_zyx: np.ndarray) -> None:
        for index, cube in cubes(block_zyx, start_zyx, CUBE_PX, self.levels[level].dtype):
            path = cube_path(self._conf.name, 2**level, index, self._suffix)
            name = path.rpartition("/")[2].removesuffix(".zip")
            self._store.put(path, encode_cube(cube, name))

    def read(self, level: int, start_zyx: Sequence[int], stop_zyx: Sequence[int]) -> np.ndarray:
        prefix = f"{self._conf.name}_mag{2**level}"
        dtype = self.levels[level].dtype
        return read_cubes(self._store, 2**level, prefix, self._suffix, dtype, start_zyx, stop_zyx)
