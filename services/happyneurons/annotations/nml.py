"""NML: skeletons, bounding boxes and the list of volume layers of a WEBKNOSSOS or KNOSSOS annotation.

Format: docs.webknossos.org, "NML Files". Positions are voxels of the dataset at full resolution, x y z;
whole numbers name a voxel, fractions a place. The parser takes no document type definition, so no entity
can make a small file large.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from xml.parsers import expat

import numpy as np
from numpy.typing import NDArray

from happyneurons.errors import UserError
from happyneurons.formats.base import Sizes
from happyneurons.formats.units import in_nm

Box = tuple[tuple[int, int, int], tuple[int, int, int]]


@dataclass(frozen=True)
class Tree:
    """node_ids: (n,) int64. positions_xyz: (n, 3) float64, voxels. edges: (m, 2) int64, places in node_ids."""

    id: int
    name: str
    node_ids: NDArray[np.int64]
    positions_xyz: NDArray[np.float64]
    edges: NDArray[np.int64]


@dataclass(frozen=True)
class VolumeEntry:
    """A volume layer, as the NML lists it."""

    name: str
    location: str
    """Name of the zip with its data; empty if it was left out of the download."""
    fallback: str
    """Layer of the dataset that shows wherever nobody painted; empty if there is none."""


@dataclass(frozen=True)
class Nml:
    dataset: str
    """Name of the dataset that was annotated."""
    voxel_size_nm_xyz: Sizes
    trees: tuple[Tree, ...]
    comments: dict[int, str]
    """Of nodes, by their id."""
    boxes: dict[str, Box]
    """Bounding boxes that people drew: name → minimum and maximum (exclusive), voxels, xyz."""
    volumes: tuple[VolumeEntry, ...]


def parse_nml(data: bytes, where: str) -> Nml:
    """Raises UserError if it is no NML, or one that contradicts itself."""
    reader = _Reader()
    parser = expat.ParserCreate()
    parser.StartElementHandler = reader.start
    parser.StartDoctypeDeclHandler = _refuse_doctype
    try:
        parser.Parse(data, True)
        return reader.result()
    except expat.ExpatError as error:
        raise UserError(f"{where}: not an NML file, or one that is cut off ({error})") from None
    except KeyError as error:
        raise UserError(f"{where}: an element <{reader.element}> lacks {error}") from None
    except (ValueError, OverflowError) as error:
        raise UserError(f"{where}: {error}") from None


def voxel_centres(positions_xyz: NDArray[np.float64]) -> NDArray[np.float64]:
    """Places, in voxels, of which 0 is the first voxel's near face: whole numbers name a voxel, its centre is taken."""
    return np.where(positions_xyz == np.floor(positions_xyz), positions_xyz + 0.5, positions_xyz)


def read_points_nm(data: bytes, where: str = "NML") -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """(positions (n, 3) in nm, x y z; number of each one's tree) of all nodes. Raises UserError."""
    nml = parse_nml(data, where)
    positions = [np.zeros((0, 3)), *(voxel_centres(tree.positions_xyz) for tree in nml.trees)]
    trees = [np.zeros(0, np.int64), *(np.full(len(tree.node_ids), tree.id, np.int64) for tree in nml.trees)]
    return np.concatenate(positions) * np.array(nml.voxel_size_nm_xyz), np.concatenate(trees)


def _refuse_doctype(*_: Any) -> None:
    raise ValueError("it has a document type definition, which no NML has; it was not read")


@dataclass
class _Drawn:
    id: int
    name: str
    nodes: list[tuple[int, float, float, float]] = field(default_factory=list)
    edges: list[tuple[int, int]] = field(default_factory=list)

    def tree(self) -> Tree:
        ids = np.array([n[0] for n in self.nodes], np.int64)
        place = {int(n): i for i, n in enumerate(ids)}
        if len(place) != len(ids):
            raise ValueError(f"tree {self.id} ({self.name}) has two nodes of one id")
        for edge in self.edges:
            if missing := [n for n in edge if n not in place]:
                raise ValueError(f"tree {self.id} ({self.name}) has an edge to node {missing[0]}, which it has not")
        edges = np.array([[place[a], place[b]] for a, b in self.edges], np.int64).reshape(-1, 2)
        positions = np.array([n[1:] for n in self.nodes], np.float64).reshape(-1, 3)
        if not np.isfinite(positions).all():
            raise ValueError(f"tree {self.id} ({self.name}): a node's position is not finite")
        return Tree(self.id, self.name, ids, positions, edges)


class _Reader:
    """Takes what matters from the elements; what it does not know it leaves."""

    def __init__(self) -> None:
        self.element = ""
        self._dataset = ""
        self._size: Sizes | None = None
        self._trees: list[_Drawn] = []
        self._comments: dict[int, str] = {}
        self._boxes: dict[str, Box] = {}
        self._volumes: list[VolumeEntry] = []
        self._known: dict[str, Callable[[dict[str, str]], None]] = {
            "experiment": self._experiment, "scale": self._scale, "thing": self._thing, "node": self._node,
            "edge": self._edge, "comment": self._comment, "userBoundingBox": self._box, "volume": self._volume,
        }  # fmt: skip

    def start(self, name: str, attributes: dict[str, str]) -> None:
        if not self.element and name != "things":
            raise ValueError(f"not an NML file: it begins with <{name}>, not <things>")
        self.element = name
        if name in self._known:
            self._known[name](attributes)

    def result(self) -> Nml:
        if self._size is None:
            raise ValueError("it does not say its voxel size (no <scale>)")
        trees = tuple(drawn.tree() for drawn in self._trees)
        if len({tree.id for tree in trees}) != len(trees):
            raise ValueError("two of its trees have one id")
        return Nml(self._dataset, self._size, trees, self._comments, self._boxes, tuple(self._volumes))

    def _experiment(self, a: dict[str, str]) -> None:
        self._dataset = a.get("name", "")

    def _scale(self, a: dict[str, str]) -> None:
        unit = in_nm(a.get("unit"), "NML")
        x, y, z = (float(a[axis]) * unit for axis in "xyz")
        if not (np.isfinite([x, y, z]).all() and min(x, y, z) > 0):
            raise ValueError(f"its voxel size, {x} × {y} × {z} nm, is none")
        self._size = (x, y, z)

    def _thing(self, a: dict[str, str]) -> None:
        self._trees.append(_Drawn(int(a["id"]), a.get("name", "")))

    def _node(self, a: dict[str, str]) -> None:
        self._last().nodes.append((int(a["id"]), float(a["x"]), float(a["y"]), float(a["z"])))

    def _edge(self, a: dict[str, str]) -> None:
        self._last().edges.append((int(a["source"]), int(a["target"])))

    def _last(self) -> _Drawn:
        if not self._trees:
            raise ValueError(f"it has a <{self.element}> outside of any <thing>")
        return self._trees[-1]

    def _comment(self, a: dict[str, str]) -> None:
        self._comments[int(a["node"])] = a.get("content", "")

    def _box(self, a: dict[str, str]) -> None:
        low = [int(a[f"topLeft{axis}"]) for axis in "XYZ"]
        lengths = [int(a[name]) for name in ("width", "height", "depth")]
        if min(lengths) > 0:
            high = [p + n for p, n in zip(low, lengths, strict=True)]
            self._boxes[a.get("name") or a["id"]] = (_xyz(low), _xyz(high))

    def _volume(self, a: dict[str, str]) -> None:
        # Older servers gave the one layer no name; today's call it so.
        self._volumes.append(VolumeEntry(a.get("name") or "Volume", a.get("location", ""), a.get("fallbackLayer", "")))


def _xyz(values: Sequence[int]) -> tuple[int, int, int]:
    x, y, z = values
    return (x, y, z)
