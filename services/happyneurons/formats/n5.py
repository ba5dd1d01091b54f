"""N5, read: single arrays and pyramids (s0, s1, …), with the attributes of n5-viewer, BigDataViewer and COSEM.

N5 counts axes with x first, tensorstore shows them in that order. Offsets are taken from `offset` and
`translate`, in nm, and from the `transform` of COSEM's arrays.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from happyneurons.errors import UserError
from happyneurons.formats.arrays import ArrayReader
from happyneurons.formats.base import ReadOptions, Sizes, pick_level, sizes
from happyneurons.formats.location import Location, read_json
from happyneurons.formats.tensor import open_array
from happyneurons.formats.units import in_nm
from happyneurons.store.triples import triple


def open_reader(location: Location, options: ReadOptions) -> ArrayReader:
    store = location.store()
    base = f"{location.inner}/" if location.inner else ""
    where = str(location)
    own = read_json(store, f"{base}attributes.json") or {}
    if "dimensions" in own:
        pick_level(options.mip, 1, where)
        path, group, document = base.rstrip("/"), _above(store, base), own
    else:
        levels = sorted(
            (n for n in store.folders(base) if n[:1] == "s" and n[1:].isdecimal()), key=lambda n: int(n[1:])
        )
        if not levels:
            names = ", ".join(store.folders(base)[:20]) or "nothing"
            raise UserError(f"{where}: no N5 array there; name one: ?NAME ({names})")
        path, group = base + levels[pick_level(options.mip, len(levels), where)], own
        document = read_json(store, f"{path}/attributes.json") or {}
    if document.get("dataType") == "uint64" and document.get("isLabelMultiset"):
        raise UserError(f"{where}: a multiset of labels (Paintera); export it as uint64 labels first")
    array = open_array(store.url(path), "n5", options.threads)
    axes = [str(a).lower() for a in document.get("axes", group.get("axes", []))]
    rank = len(array.shape)
    if not set("zyx") <= set(axes) or len(axes) != rank:
        axes = ["x", "y", "z", "c"][:rank] if rank in (3, 4) else axes
    try:
        size, offset_nm = _placement(document, group, where)
    except (LookupError, TypeError, ValueError) as error:
        raise UserError(f"{where}: its attributes.json is not understood ({error!r})") from None
    first = triple(round(nm / s) for nm, s in zip(offset_nm[::-1], size[::-1], strict=True))
    return ArrayReader(where, array, axes, options, first_zyx=first, voxel_size_nm_xyz=size)


def _above(store: Any, base: str) -> dict[str, Any]:
    """Attributes of the group that an array lies in: pyramids keep the voxel size there."""
    parent = base.rstrip("/").rpartition("/")[0]
    found = read_json(store, f"{parent}/attributes.json" if parent else "attributes.json") if base else None
    return found or {}


def _placement(array: dict[str, Any], group: dict[str, Any], where: str) -> tuple[Sizes, Sizes]:
    """(voxel size, position of the first voxel), in nm, xyz."""
    transform = array.get("transform")
    if isinstance(transform, dict) and "scale" in transform:
        axes = [str(a) for a in transform.get("axes", "zyx")]
        nm = [in_nm(unit, where) for unit in transform.get("units", ["nm"] * len(axes))]
        order = [axes.index(a) for a in "xyz"]
        shift = transform.get("translate", [0.0] * len(axes))
        return (
            sizes(float(transform["scale"][i]) * nm[i] for i in order),
            sizes(float(shift[i]) * nm[i] for i in order),
        )
    factors = array.get("downsamplingFactors") or [1, 1, 1]
    pixel = array.get("pixelResolution") or group.get("pixelResolution")
    own = array.get("resolution")
    if isinstance(pixel, dict):
        unit, size = in_nm(pixel.get("unit"), where), pixel["dimensions"]
        own = None
    elif pixel is not None:
        unit, size = 1.0, pixel
    else:
        unit, size = _unit(array, group, where), own or group.get("resolution") or [1.0, 1.0, 1.0]
    if own is None:  # said for full resolution
        size = np.multiply(size[:3], factors[:3]).tolist()
    shift = array.get("offset") or array.get("translate") or group.get("offset") or [0.0, 0.0, 0.0]
    return sizes(float(s) * unit for s in size[:3]), sizes(float(s) * unit for s in shift[:3])


def _unit(array: dict[str, Any], group: dict[str, Any], where: str) -> float:
    units = array.get("units") or group.get("units")
    return in_nm(str(units[0]) if units else None, where)
