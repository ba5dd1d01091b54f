"""Voxel size and offset in TIFF files."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

from happyneurons.formats.base import Sizes, VolumeInfo
from happyneurons.formats.pages import Page

_NM = {"nm": 1.0, "um": 1e3, "µm": 1e3, "\\u00B5m": 1e3, "micron": 1e3, "mm": 1e6, "cm": 1e7, "m": 1e9, "pixel": None}


def description(info: VolumeInfo, z: int) -> dict[str, Any]:
    """What our writer tells of a section; tifffile puts it into the description as JSON."""
    return {
        "voxel_size_nm_xyz": list(info.voxel_size_nm_xyz),
        "voxel_offset_xyz": [info.start_zyx[2], info.start_zyx[1], z],
        "kind": info.kind,
    }


def placement(page: Page) -> tuple[Sizes, tuple[int, int, int], bool | None]:
    """(voxel size in nm, offset in voxels, both xyz; labels or not) of a stack, as its first page tells.

    Nothing said: 1 nm, offset 0.
    """
    tiff = page.tiff
    if tiff is None:
        return (1.0, 1.0, 1.0), (0, 0, 0), None
    shaped = _shaped(tiff)
    if "voxel_size_nm_xyz" in shaped:
        x, y, z = (float(v) for v in shaped["voxel_size_nm_xyz"])
        a, b, c = (int(v) for v in shaped.get("voxel_offset_xyz", (0, 0, 0)))
        return (x, y, z), (a, b, c), {"segmentation": True, "image": False}.get(shaped.get("kind", ""))
    return _ome(tiff) or _imagej(tiff) or (1.0, 1.0, 1.0), (0, 0, 0), None


def _shaped(tiff: Any) -> dict[str, Any]:
    import json

    try:
        found = json.loads(tiff.description)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _ome(tiff: Any) -> Sizes | None:
    if "<OME" not in tiff.description:
        return None
    try:
        pixels = next(e for e in ElementTree.fromstring(tiff.description).iter() if e.tag.endswith("}Pixels"))
    except (ElementTree.ParseError, StopIteration):
        return None
    sizes: list[float] = []
    for axis in "XYZ":
        value = pixels.get(f"PhysicalSize{axis}")
        factor = _NM.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
        if value is None or factor is None:
            if axis != "Z" or not sizes:
                return None
            sizes.append(sizes[0])  # one section has no depth of its own
            continue
        sizes.append(float(value) * factor)
    return (sizes[0], sizes[1], sizes[2])


def _imagej(tiff: Any) -> Sizes | None:
    if not tiff.description.startswith("ImageJ="):
        return None
    said = dict(line.split("=", 1) for line in tiff.description.splitlines() if "=" in line)
    factor = _NM.get(said.get("unit", "").strip())
    if factor is None:
        return None
    found = []
    for tag in ("XResolution", "YResolution"):
        if tag not in tiff.tags:
            return None
        count, per = tiff.tags[tag].value
        if not count or not per:
            return None
        found.append(per / count * factor)
    try:
        depth = float(said["spacing"]) * factor
    except (KeyError, ValueError):
        depth = found[0]
    return (found[0], found[1], depth)
