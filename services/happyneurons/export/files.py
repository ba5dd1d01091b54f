"""The bytes of a file: OBJ and PLY of a mesh, SWC of a skeleton, each with a header that says what it is.

Headers are the same for the same segment of the same source with the same options, so that the beginning
of a file tells whether it has to be written again.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from happyneurons._version import __version__
from happyneurons.export.layers import Layer
from happyneurons.store.swc import swc_text

UNIT_NM = {"nm": 1.0, "um": 1000.0}
_DIGITS = {"nm": 3, "um": 6}
_UNIT_NAMES = {"nm": "nanometres", "um": "micrometres"}


def header_lines(layer: Layer, segment: int, units: str, lod: int | None) -> list[str]:
    """What is said of a file in its comments."""
    lines = [
        f"happyneurons {__version__}",
        f"source {_one_line(layer.uri)}",
        f"digest {layer.digest}",
        f"segment {segment}",
        f"units {_UNIT_NAMES[units]}, axes x y z of the volume",
    ]
    return lines if lod is None else [*lines, f"level of detail {lod}"]


def head(form: str, lines: list[str]) -> bytes:
    """The beginning of a file with these comments."""
    if form == "ply":
        return b"ply\nformat binary_little_endian 1.0\n" + b"".join(b"comment %s\n" % line.encode() for line in lines)
    return b"".join(b"# %s\n" % line.encode() for line in lines)


def obj_bytes(mesh: Any, lines: list[str], units: str) -> bytes:
    """Wavefront OBJ of a CloudVolume Mesh in nm."""
    return head("obj", lines) + bytes(_scaled(mesh, units).to_obj())


def ply_bytes(mesh: Any, lines: list[str], units: str) -> bytes:
    """Binary little-endian PLY of a CloudVolume Mesh in nm."""
    # CloudVolume's writer has no comments, whose place is after its first two lines.
    _, _, rest = bytes(_scaled(mesh, units).to_ply()).partition(b"\nelement ")
    return head("ply", lines) + b"element " + rest


def swc_bytes(skeleton: Any, lines: list[str], units: str) -> tuple[bytes, list[float]]:
    """(SWC of a CloudVolume Skeleton in nm, lengths in nm of the edges left out because they close a loop)."""
    count = len(skeleton.vertices)
    radius = _attribute(skeleton, ("radius", "radii"), count)
    types = _attribute(skeleton, ("vertex_types", "types"), count)
    text, left_out = swc_text(
        skeleton.vertices, skeleton.edges,
        np.zeros(count) if radius is None else np.maximum(radius, 0),  # -1 stands for one that is not known
        types=None if types is None else types.astype(np.int64),
        unit_nm=UNIT_NM[units], digits=_DIGITS[units], comments=lines,
    )  # fmt: skip
    return text, left_out


def joined(mesh: Any) -> Any:
    """A mesh whose pieces share the vertices of their borders, with its faces outward; None if no face is left.

    Fragments meet in vertices that are exactly equal. Faces are counterclockwise seen from outside: all are turned if
    the volume that they enclose (about their centre, for meshes that the volume's border has cut open) is negative.
    """
    from cloudvolume import Mesh

    vertices, faces = np.ascontiguousarray(mesh.vertices, np.float32), np.asarray(mesh.faces, np.int64).reshape(-1, 3)
    if not len(faces):
        return None
    vertices = vertices + np.float32(0)  # -0 is 0 byte by byte, too
    rows = vertices.view([("", np.float32)] * 3).ravel()
    _, first, place = np.unique(rows, return_index=True, return_inverse=True)
    faces = place.ravel()[faces]
    a, b, c = faces.T
    faces = faces[(a != b) & (b != c) & (a != c)]
    used, numbers = np.unique(faces, return_inverse=True)
    vertices, faces = vertices[first[used]], numbers.reshape(-1, 3)
    if not len(faces):
        return None
    if enclosed_nm3(vertices, faces) < 0:
        faces = faces[:, ::-1]
    return Mesh(vertices, faces, segid=mesh.segid)


def enclosed_nm3(vertices_nm: NDArray[Any], faces: NDArray[Any]) -> float:
    """Volume inside of faces, positive if they are counterclockwise seen from outside."""
    moved = vertices_nm.astype(np.float64) - vertices_nm.astype(np.float64).mean(axis=0)
    a, b, c = (moved[faces[:, i]] for i in range(3))
    return float(np.einsum("ij,ij->", a, np.cross(b, c)) / 6)


def _scaled(mesh: Any, units: str) -> Any:
    from cloudvolume import Mesh

    return mesh if units == "nm" else Mesh(mesh.vertices.astype(np.float64) / UNIT_NM[units], mesh.faces)


def _attribute(skeleton: Any, names: tuple[str, ...], count: int) -> NDArray[Any] | None:
    """A number of each vertex, by any of its names; None if the layer has none."""
    for attribute in skeleton.extra_attributes:
        if attribute["id"] in names:
            values = np.asarray(getattr(skeleton, attribute["id"]))
            if values.shape == (count,):
                return values
    return None


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)
