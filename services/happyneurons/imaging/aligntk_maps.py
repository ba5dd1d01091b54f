"""AlignTK's map files (`.map`, format M1) as warps, and warps as map files.

A file holds five lines of text, then the nodes, row by row:

    M1
    LEVEL                   nodes lie 2^LEVEL px apart
    WIDTH HEIGHT            number of nodes
    X_MIN Y_MIN             index of the first node
    IMAGE REFERENCE         names, without white space
    WIDTH x HEIGHT records of three little-endian float32: x, y, c

The node of index (i, j) lies at (i, j) · 2^LEVEL in IMAGE; its place in REFERENCE is (x, y) · 2^LEVEL.
It counts only if c > 0. Every map leads from the image to what it is set upon: those of `find_rst`
and `register` from a section to its neighbour, those that `align` writes ("amaps") from a section
to the aligned stack, as `transforms/` of an aligned stack do. `apply_map` inverts them to draw.

AlignTK counts px from the outer corner of the first pixel, so that this pixel's centre is at
(0.5, 0.5); a GridWarp counts from that centre. Both coordinates are moved here.

Written from the format alone: AlignTK is GPL-3 and none of its code is in here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from happyneurons.errors import UserError
from happyneurons.imaging.cut_warp import CutWarp
from happyneurons.imaging.filling import filled
from happyneurons.imaging.warp import GridWarp

Floats = NDArray[np.float64]

# Centre of the first pixel as AlignTK counts.
CENTRE_PX = 0.5
_HEADER = re.compile(rb"M1\n\s*(\d+)\s+(\d+)\s+(\d+)\s+(-?\d+)\s+(-?\d+)\s+(\S+)\s+(\S+)\n")
_MOST_HEADER_BYTES = 10_000  # two paths and some numbers
_MOST_LEVEL = 24
_NODE = np.dtype("<f4")


@dataclass(frozen=True)
class AlignTKMap:
    """A map file's content.

    places: (h, w, 2) float64 (x, y) in units of 2^level px, as in the file. confidence: (h, w)
    float64; nodes with 0 or less have no place. first_xy: index of node [0, 0].
    """

    level: int
    first_xy: tuple[int, int]
    image: str
    reference: str
    places: Floats
    confidence: Floats

    @property
    def valid(self) -> NDArray[np.bool_]:
        """(h, w): which nodes have a place."""
        return self.confidence > 0

    def sources_px(self) -> Floats:
        """(h, w, 2) px (x, y) of the nodes in the image, from the centre of the first pixel."""
        height, width = self.confidence.shape
        x, y = (first + np.arange(n) for first, n in zip(self.first_xy, (width, height), strict=True))
        return np.stack(np.meshgrid(x, y), axis=-1) * float(2**self.level) - CENTRE_PX

    def targets_px(self) -> Floats:
        """(h, w, 2) px (x, y) of the nodes in the reference; without meaning where the node has no place."""
        return self.places * float(2**self.level) - CENTRE_PX

    def warp(self) -> GridWarp:
        """Image px → reference px. Nodes without a place get one that goes on smoothly from those that have one.

        Raises UserError if no node has a place.
        """
        if not self.valid.any():
            raise UserError(f"map {self.image} → {self.reference}: no node has a place (c is 0 everywhere)")
        sources, targets, valid = self.sources_px(), self.targets_px(), self.valid
        spacing = float(2**self.level)
        # A warp has two nodes at least in each direction, a map may have one.
        for axis in (0, 1):
            if valid.shape[axis] == 1:
                step = np.zeros(2)
                step[1 - axis] = spacing
                sources = np.concatenate([sources, sources + step], axis)
                targets = np.concatenate([targets, targets], axis)
                valid = np.concatenate([valid, np.zeros_like(valid)], axis)
        return GridWarp(sources[0, 0], spacing, filled(sources, targets, valid))

    def encode(self) -> bytes:
        """The file's bytes."""
        height, width = self.confidence.shape
        (x, y), names = self.first_xy, f"{self.image} {self.reference}"
        header = f"M1\n{self.level}\n{width} {height}\n{x} {y}\n{names}\n".encode()
        nodes = np.concatenate([self.places, self.confidence[..., None]], axis=-1)
        return header + nodes.astype(_NODE).tobytes()


def parse_map(data: bytes, name: str = "map") -> AlignTKMap:
    """A map file's bytes. Raises UserError, with `name` in front, for what is no whole map file."""
    header = _HEADER.match(data[:_MOST_HEADER_BYTES])
    if header is None:
        raise UserError(f"{name}: not an AlignTK map: expected the line M1, five numbers and two names")
    level, width, height, x, y = (int(header[i]) for i in range(1, 6))
    if level > _MOST_LEVEL or not width or not height:
        raise UserError(f"{name}: damaged AlignTK map: level {level}, {width} x {height} nodes")
    expected, found = width * height * 3 * _NODE.itemsize, len(data) - header.end()
    if found != expected:
        what = "truncated" if found < expected else "damaged"
        raise UserError(
            f"{name}: {what} AlignTK map: {width} x {height} nodes take {expected} bytes, there are {found}"
        )
    nodes = np.frombuffer(data, _NODE, offset=header.end()).reshape(height, width, 3).astype(np.float64)
    # Not > 0 rather than <= 0: a NaN is no confidence.
    nodes[~(nodes[..., 2] > 0)] = 0.0
    if not np.isfinite(nodes).all():
        raise UserError(f"{name}: damaged AlignTK map: places that are no numbers")
    return AlignTKMap(
        level, (x, y), header[6].decode(errors="replace"), header[7].decode(errors="replace"),
        nodes[..., :2], nodes[..., 2],
    )  # fmt: skip


def map_of(warp: GridWarp | CutWarp, image: str, reference: str, level: int | None = None) -> AlignTKMap:
    """A warp as a map, all of whose nodes have a place (c = 1).

    level: nodes lie 2^level px apart; None: as far apart as the warp's, or the next closer
    power of two. A warp whose nodes lie where those of the map do is taken over as it is, to
    float32; any other one is sampled at the map's nodes. They cover the warp's grid. AlignTK's maps are
    continuous: of a warp with cuts they are the sheet of the whole section.
    """
    if isinstance(warp, CutWarp):
        warp = warp.sheets[0]
    for given in (image, reference):
        if not given or re.search(r"\s", given):
            raise UserError(f"map name {given!r}: AlignTK's names have one character at least and no white space")
    if level is None:
        level = max(0, int(np.floor(np.log2(warp.spacing_px) + 1e-9)))
    if not 0 <= level <= _MOST_LEVEL:
        raise UserError(f"map level {level}: expected 0 to {_MOST_LEVEL}")
    step = float(2**level)
    ny, nx = warp.nodes.shape[:2]
    first = (warp.origin_xy + CENTRE_PX) / step
    last = first + np.array([nx - 1, ny - 1]) * warp.spacing_px / step
    low, high = np.floor(first + 1e-9).astype(int), np.ceil(last - 1e-9).astype(int)
    x, y = (np.arange(a, b + 1) for a, b in zip(low, high, strict=True))
    sources = np.stack(np.meshgrid(x, y), axis=-1) * step - CENTRE_PX
    same = warp.spacing_px == step and np.array_equal(first, low)
    targets = warp.nodes if same else warp.map(sources.reshape(-1, 2)).reshape(sources.shape)
    return AlignTKMap(
        level, (int(low[0]), int(low[1])), image, reference, (targets + CENTRE_PX) / step, np.ones(targets.shape[:2])
    )


def read_map(path: str | Path) -> GridWarp:
    """The warp in a map file: image px → reference px, smooth where the file has no places.

    Raises UserError for a file that is missing, broken or without any place.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    return parse_map(data, str(path)).warp()


def write_map(
    path: str | Path, warp: GridWarp | CutWarp, image: str, reference: str = "align", level: int | None = None
) -> None:
    """Write a warp (image px → reference px) as a map file; see `map_of` for level and resampling."""
    Path(path).write_bytes(map_of(warp, image, reference, level).encode())
