"""The voxels of a volume annotation: WKW or Zarr 3 as WEBKNOSSOS packs them, in blocks that somebody changed.

Only changed blocks (32³ voxels) have files. Where there is none, nobody painted, and the dataset's own
layer shows, if the annotation was begun from one (the "fallback layer"). Coordinates are those of the
dataset, divided by the magnification.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from happyneurons.errors import UserError
from happyneurons.formats.base import Reader, ReadOptions, Sizes
from happyneurons.store.documents import Store
from happyneurons.store.triples import Triple, triple

Read = Callable[[Triple, Triple], np.ndarray]
_MAG = re.compile(r"(\d+)(?:-(\d+)-(\d+))?")
_WKW_FILE = re.compile(r"z(\d+)/y(\d+)/x(\d+)\.wkw")
_ZARR_CHUNK = re.compile(r"(?:c[./])?0[./](\d+)[./](\d+)[./](\d+)")
CHANGED_PX = 32
"""Edge of the blocks in which WEBKNOSSOS keeps what changed."""


@dataclass(frozen=True)
class VolumeData:
    """One magnification of a volume layer."""

    reader: Reader
    mag_xyz: Triple
    block_zyx: Triple
    """Shape of what a file holds, voxels."""
    blocks: NDArray[np.int64]
    """(n, 3) zyx: which blocks there are, in units of their shape; sorted."""

    @property
    def voxel_size_nm_xyz(self) -> Sizes:
        return self.reader.voxel_size_nm_xyz

    @property
    def box(self) -> tuple[Triple, Triple] | None:
        """[start, stop), zyx, of all blocks; None if there are none."""
        if not len(self.blocks):
            return None
        shape = np.array(self.block_zyx)
        return triple(self.blocks.min(0) * shape), triple((self.blocks.max(0) + 1) * shape)

    def read(self, start_zyx: Triple, stop_zyx: Triple, below: Read | None) -> NDArray[np.uint64]:
        """Labels of a box: of changed blocks, elsewhere what `below` gives, or 0. Raises TaskError, UserError."""
        shape = [b - a for a, b in zip(start_zyx, stop_zyx, strict=True)]
        labels = np.zeros(shape, np.uint64) if below is None else below(start_zyx, stop_zyx).astype(np.uint64)
        size = np.array(self.block_zyx)
        touched = ((self.blocks + 1) * size > start_zyx) & (self.blocks * size < stop_zyx)
        for block in self.blocks[touched.all(1)]:
            low = triple(np.maximum(block * size, start_zyx))
            high = triple(np.minimum((block + 1) * size, stop_zyx))
            part = self.reader.read(low, high)
            if part.dtype.kind == "i" and part.size and part.min() < 0:
                raise UserError(f"{self.reader.uri}: it has negative ids, which cannot be labels here")
            labels[tuple(slice(a - o, b - o) for a, b, o in zip(low, high, start_zyx, strict=True))] = part
        return labels


def open_volume_data(
    folder: Path, where: str, voxel_size_nm_xyz: Sizes, mip: int, threads: int = 1
) -> VolumeData | None:
    """What an annotation's data zip held, unpacked; mip: place among its magnifications, the finest is 0.

    None: the zip was empty, as older servers give it if nobody painted.
    Raises UserError if it holds no data of WEBKNOSSOS, or files that disagree with its description.
    """
    if not any(folder.iterdir()):
        return None
    mags = _magnifications(folder)
    if not mags:
        raise UserError(f"{where}: it holds neither WKW (header.wkw) nor Zarr 3 (zarr.json) data of an annotation")
    if mip >= len(mags):
        names = ", ".join("-".join(map(str, mag)) for mag in mags)
        raise UserError(f"{where}: there is no level {mip}; it has the magnifications {names}")
    mag = list(mags)[mip]
    path = mags[mag]
    sx, sy, sz = (s * m for s, m in zip(voxel_size_nm_xyz, mag, strict=True))
    opened = _open_wkw if (path / "header.wkw").exists() else _open_zarr
    return opened(folder, path, where, mag, (sx, sy, sz), threads)


def _magnifications(folder: Path) -> dict[Triple, Path]:
    """Magnification (xyz) → its folder, the finest first."""
    found: dict[Triple, Path] = {}
    for document in [*folder.rglob("header.wkw"), *folder.rglob("zarr.json")]:
        name = _MAG.fullmatch(document.parent.name)
        if name is not None:
            mag = triple(name.groups() if name[2] else (name[1],) * 3)
            if min(mag) > 0:
                found[mag] = document.parent
    return dict(sorted(found.items(), key=lambda item: (np.prod(item[0]), item[0])))


def _open_wkw(folder: Path, path: Path, where: str, mag: Triple, size: Sizes, threads: int) -> VolumeData:
    from happyneurons.formats.webknossos import WkwReader
    from happyneurons.formats.wkw import HEADER_BYTES, Header

    header = Header.parse((path / "header.wkw").read_bytes(), f"{where}, {path.name}/header.wkw")
    indices = []
    for file in path.rglob("*.wkw"):
        name = file.relative_to(path).as_posix()
        matched = _WKW_FILE.fullmatch(name)
        if matched is None:
            continue
        with file.open("rb") as opened:
            own = Header.parse(opened.read(HEADER_BYTES), f"{where}, {path.name}/{name}")
        if (own.block_px, own.file_px, own.dtype) != (header.block_px, header.file_px, header.dtype):
            raise UserError(
                f"{where}, {path.name}/{name}: a file with blocks of {own.block_px}³ voxels, {own.file_px}³ in all, "
                f"{own.dtype}; header.wkw says {header.block_px}³, {header.file_px}³, {header.dtype}: get it anew"
            )
        indices.append([int(n) for n in matched.groups()])
    blocks = _sorted(indices)
    edge = triple((header.file_px,) * 3)
    box = _box(blocks, edge)
    store = Store(folder.as_uri())
    reader = WkwReader(where, store, path.relative_to(folder).as_posix(), ReadOptions(threads=threads), box, size, True)
    return _checked(VolumeData(reader, mag, edge, blocks))


def _open_zarr(folder: Path, path: Path, where: str, mag: Triple, size: Sizes, threads: int) -> VolumeData:
    from happyneurons.formats.arrays import ArrayReader
    from happyneurons.formats.tensor import open_array

    document = path / "zarr.json"
    try:
        described = json.loads(document.read_bytes())
        chunk = [int(n) for n in described["chunk_grid"]["configuration"]["chunk_shape"]]
        names = [str(n) for n in described.get("dimension_names") or ["c", "x", "y", "z"]]
        if names != ["c", "x", "y", "z"] or len(chunk) != 4 or min(chunk) < 1:
            raise ValueError(f"axes {names}, chunks {chunk}")
        if _spell_out(described.get("codecs", []), len(chunk)):
            document.write_text(json.dumps(described))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{where}, {path.name}/zarr.json: not the array of a volume annotation ({error})") from None
    edge = triple(chunk[:0:-1])
    indices = []
    for file in path.rglob("*"):
        matched = _ZARR_CHUNK.fullmatch(file.relative_to(path).as_posix())
        if matched is not None and file.is_file():
            indices.append([int(n) for n in matched.groups()[::-1]])
    blocks = _sorted(indices)
    array = open_array(path.as_uri(), "zarr3", threads)
    reader = ArrayReader(
        where, array, names, ReadOptions(threads=threads), first_zyx=(0, 0, 0), voxel_size_nm_xyz=size, labels=True,
        box=_box(blocks, edge),
    )  # fmt: skip
    return _checked(VolumeData(reader, mag, edge, blocks))


def _spell_out(codecs: list[dict[str, Any]], axes: int) -> bool:
    """Write a transpose's order as numbers: WEBKNOSSOS says "F", a draft's word that today's readers refuse."""
    changed = False
    for codec in codecs:
        configuration = codec.get("configuration", {})
        if codec.get("name") == "transpose" and configuration.get("order") in ("F", "C"):
            order = list(range(axes))
            configuration["order"] = order[::-1] if configuration["order"] == "F" else order
            changed = True
        changed |= _spell_out(configuration.get("codecs", []), axes)
    return changed


def _checked(data: VolumeData) -> VolumeData:
    if data.reader.dtype.kind not in "ui":
        raise UserError(f"{data.reader.uri}: voxels of {data.reader.dtype} are no labels")
    return data


def _sorted(indices: list[list[int]]) -> NDArray[np.int64]:
    return np.array(sorted(indices), np.int64).reshape(-1, 3)


def _box(blocks: NDArray[np.int64], edge: Triple) -> tuple[Triple, Triple]:
    if not len(blocks):
        return (0, 0, 0), (0, 0, 0)
    return triple(blocks.min(0) * edge), triple((blocks.max(0) + 1) * edge)
