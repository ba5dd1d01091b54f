"""Which formats there are, and which one a place holds."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from happyneurons.errors import UserError
from happyneurons.formats.base import Reader, ReadOptions, VolumeInfo, WriteOptions, Writer
from happyneurons.formats.location import Location, absolute
from happyneurons.store.documents import Store, canonical_json


@dataclass(frozen=True)
class Format:
    """A format; its module has a `open_reader(location, options)` and a Writer, unless it is only read."""

    name: str
    title: str
    module: str
    writer: str | None
    documents: tuple[str, ...] = ()
    """Names of files in a folder by which the format is known."""
    suffixes: tuple[str, ...] = ()
    """Ends of the names of single files, or of folders that are to be written."""


FORMATS: dict[str, Format] = {
    f.name: f
    for f in (
        Format("webknossos-wkw", "WEBKNOSSOS (WKW)", "webknossos", "WkwWriter", ("datasource-properties.json",)),
        Format("webknossos-zarr3", "WEBKNOSSOS (Zarr 3)", "webknossos", "Zarr3Writer", ("datasource-properties.json",)),
        Format("precomputed", "Neuroglancer precomputed", "precomputed", "PrecomputedWriter", ("info", "info.gz")),
        Format(
            "ome-zarr", "OME-Zarr", "ome_zarr", "OmeZarrWriter", ("zarr.json", ".zattrs", ".zgroup", ".zarray"),
            (".zarr",),
        ),
        Format("n5", "N5", "n5", None, ("attributes.json",), (".n5",)),
        Format("knossos", "KNOSSOS cubes", "knossos", "KnossosWriter", ("knossos.conf", "mag1/knossos.conf")),
        Format("hdf5", "HDF5", "hdf5", "Hdf5Writer", (), (".h5", ".hdf5", ".hdf")),
        Format("tiff", "stack of TIFF files", "tiff", "TiffWriter", (), (".tif", ".tiff")),
    )
}  # fmt: skip
WRITABLE = tuple(f.name for f in FORMATS.values() if f.writer)


def open_reader(uri: str, options: ReadOptions, name: str = "auto") -> Reader:
    """Open a volume. Raises UserError if there is none, or none that can be read."""
    location = Location.parse(uri)
    found = FORMATS[name] if name != "auto" else recognize(location, uri)
    reader: Reader = _module(found).open_reader(location, options)
    return reader


def make_writer(uri: str, name: str, levels: Sequence[VolumeInfo], options: WriteOptions) -> Writer:
    """The writer of a format; nothing is written yet. Raises UserError if the format cannot hold the volume."""
    found = FORMATS[name]
    if found.writer is None:
        raise UserError(f"{found.title} is only read here; write one of {', '.join(WRITABLE)}")
    writer: Writer = getattr(_module(found), found.writer)(Location.parse(uri), levels, options)
    writer.check()
    return writer


def recognize(location: Location, uri: str = "") -> Format:
    """The format of what lies there. Raises UserError."""
    for prefix, name in (("h5://", "hdf5"), ("precomputed://", "precomputed")):
        if uri.startswith(prefix):
            return FORMATS[name]
    path = location.path
    if path is not None and not path.exists():
        raise UserError(f"{location}: there is nothing at {path}")
    if path is None or path.is_dir():
        store = Store(location.root)
        for folder in ("", f"{location.inner}/")[: 1 + bool(location.inner)]:
            for found in FORMATS.values():
                if any(store.exists(folder + document) for document in found.documents):
                    return found
        if any(p.lower().endswith((".tif", ".tiff", ".png")) and "/" not in p for p in store.list("")):
            return FORMATS["tiff"]
    by_name = named(location)
    if by_name is not None:
        return by_name
    raise UserError(
        f"{location}: not a volume in a known format; a folder of one holds "
        + ", ".join(f"{f.documents[0]} ({f.title})" for f in FORMATS.values() if f.documents)
        + " or TIFF files; files are .h5 or .tif"
    )


def named(location: Location) -> Format | None:
    """The format that a name's end stands for."""
    for found in FORMATS.values():
        if location.name.lower().endswith(found.suffixes) and found.suffixes:
            return found
    return None


def _module(found: Format) -> Any:
    try:
        return importlib.import_module(f"happyneurons.formats.{found.module}")
    except ModuleNotFoundError as error:
        if error.name in ("tensorstore", "cramjam", "zstandard"):
            raise UserError(
                f"{found.title} needs the package {error.name}: pip install 'happyneurons[formats]'"
            ) from None
        raise


def identity(uri: str, name: str = "auto") -> str:
    """What stands for a source's content in a job's key: its description, or its files' sizes and times.

    Whoever changes voxels in place under the same description must give the volume another name.
    """
    location = Location.parse(uri)
    found = FORMATS[name] if name != "auto" else recognize(location, uri)
    path = location.path
    if path is not None and path.is_file():
        parts: list[Any] = [stat_of(path)]
    else:
        store = location.store()
        if found.documents:
            inner = [f"{location.inner}/{d}" for d in found.documents] if location.inner else []
            documents = [d for d in [*found.documents, *inner] if store.exists(d)]
            parts = [[d, hashlib.sha256(store.get(d)).hexdigest()] for d in documents]
        else:
            names = sorted(n for n in store.list("") if "/" not in n)
            parts = [[n, stat_of(path / n) if path else store.stat(n)[0]] for n in names]
    return hashlib.sha256(canonical_json([found.name, absolute(uri), parts])).hexdigest()


def stat_of(path: Path) -> str:
    found = path.stat()
    return f"{found.st_size}:{found.st_mtime_ns}"
