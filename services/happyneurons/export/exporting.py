"""A file for each segment of a layer, written whole; what is there already is not written again."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from happyneurons.errors import NotFoundError, TaskError, UserError
from happyneurons.export import files
from happyneurons.export.layers import MESHES, SKELETONS, Layer, Reader, open_layer
from happyneurons.publish.publishing import in_threads
from happyneurons.store.artifacts import Artifact
from happyneurons.store.documents import Store

Format = Literal["obj", "ply", "swc"]
FORMATS: tuple[str, ...] = get_args(Format)
KINDS = {"obj": MESHES, "ply": MESHES, "swc": SKELETONS}
UNITS = {"obj": "nm", "ply": "nm", "swc": "um"}
"""What is usual: lengths in SWC files are taken to be in µm."""
LARGEST_ID = 2**64 - 1


@dataclass
class Exported:
    """What an export did. missing: ids without a mesh or skeleton; failed: id → why it could not be read.

    loops: id of a skeleton written now → (edges left out because they close a loop, their length in nm).
    """

    place: str
    source: str
    written: int = 0
    written_bytes: int = 0
    unchanged: int = 0
    missing: list[int] = field(default_factory=list)
    failed: dict[int, str] = field(default_factory=dict)
    loops: dict[int, tuple[int, float]] = field(default_factory=dict)


def export_layer(
    source: Layer | Artifact | str,
    to: str,
    form: Format,
    *,
    ids: Sequence[int] | None = None,
    largest: int | None = None,
    lod: int = 0,
    units: Literal["nm", "um"] | None = None,
    force: bool = False,
    threads: int = 4,
    on_segment: Callable[[int, int], None] = lambda done, total: None,
) -> Exported:
    """Write `ID.obj`, `ID.ply` or `ID.swc` for segments of a mesh or skeleton layer.

    source: the layer, an artifact or the URI of one; a segmentation stands for the meshes or skeletons inside of it.
    to: URI of a folder. ids: segments, in this order; or the `largest` ones by the layer's own table; or all if neither
    is given. lod: level of detail of meshes, 0 the finest; those with fewer levels give their coarsest. units: of
    lengths, [default: nm for meshes, µm for SWC]. force: write again what is there already. threads: segments in memory
    are at most twice as many. on_segment: told (segments done, of all).

    Files appear whole or not at all. One that is there is kept if its header names the same source, digest and options.
    Raises UserError before anything is written, StoreError (try again: what is there is kept).
    """
    if form not in FORMATS:
        raise UserError(f"format {form!r}: there are {', '.join(FORMATS)}")
    layer = source if isinstance(source, Layer) else open_layer(source, KINDS[form])
    if layer.kind != KINDS[form]:
        raise UserError(f"{form} files are of {KINDS[form]}s; {layer.uri} is a {layer.kind}")
    if lod < 0 or (lod and not layer.multires):
        raise UserError(f"lod {lod}: {layer.uri} has one level of detail, 0" if lod > 0 else f"lod {lod}: 0 or more")
    units = units or ("um" if UNITS[form] == "um" else "nm")
    if units not in files.UNIT_NM:
        raise UserError(f"units {units!r}: there are {', '.join(files.UNIT_NM)}")
    for segment in ids or ():
        if not 0 <= segment <= LARGEST_ID:
            raise UserError(f"id {segment}: expected 0 to 2^64 - 1")
    reader = Reader(layer)
    if ids is not None:
        wanted = list(dict.fromkeys(ids))
    else:
        wanted = reader.ids() if largest is None else reader.largest(largest)
    if not wanted:
        raise UserError(f"{layer.uri}: no segments to export")
    place = Store(to)
    if place.uri == layer.data_uri or place.uri.startswith(layer.data_uri + "/"):
        raise UserError(f"{place.uri}: lies inside of the layer, which does not change; name another place")
    place.check_writable()
    done = Exported(place.uri, layer.uri)
    lock, finished = threading.Lock(), 0

    def one(segment: int) -> None:
        nonlocal finished
        _export(reader, segment, place, form, lod, units, force, done, lock)
        with lock:
            finished += 1
            on_segment(finished, len(wanted))

    # CloudVolume prints what it stumbles over. Here, once: it is the whole process's output, not a thread's.
    with contextlib.redirect_stdout(sys.stderr):
        in_threads(one, wanted, threads)
    done.missing.sort()
    return done


def _export(
    reader: Reader, segment: int, place: Store, form: str, lod: int, units: str, force: bool, done: Exported,
    lock: threading.Lock,
) -> None:  # fmt: skip
    lines = files.header_lines(reader.layer, segment, units, lod if reader.layer.multires else None)
    path = f"{segment}.{form}"
    if not force and _is_there(place, path, files.head(form, lines)):
        with lock:
            done.unchanged += 1
        return
    left_out: list[float] = []
    data = None
    try:
        found = reader.read(segment, lod)
        if form == "swc":
            if found is not None and len(found.vertices):
                data, left_out = files.swc_bytes(found, lines, units)
        elif found is not None and (mesh := files.joined(found)) is not None:
            data = (files.obj_bytes if form == "obj" else files.ply_bytes)(mesh, lines, units)
    except TaskError as error:
        with lock:
            done.failed[segment] = " ".join(str(error).split())
        return
    if data is not None:
        place.put(path, data)
    with lock:
        if data is None:
            done.missing.append(segment)
            return
        done.written += 1
        done.written_bytes += len(data)
        if left_out:
            done.loops[segment] = len(left_out), round(sum(left_out), 1)


def _is_there(place: Store, path: str, head: bytes) -> bool:
    try:
        return place.get_range(path, 0, len(head)) == head
    except NotFoundError:
        return False
