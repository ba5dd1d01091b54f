"""The tiles of a section: what the tile set says of them, and their pixels."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock
from typing import Any

import numpy as np

from happyneurons.errors import HappyError, StoreError, TaskError, UserError
from happyneurons.store.documents import Store, local_path

# What ingest may say of a tile that still has a picture.
USABLE = ("ok", "flagged")


@dataclass(frozen=True)
class Tile:
    """A tile and the nominal place of its upper left pixel, px; width and height in px."""

    row: int
    col: int
    x_px: float
    y_px: float
    width: int
    height: int
    uri: str

    @property
    def name(self) -> str:
        return f"{self.row}_{self.col}"


@dataclass(frozen=True)
class Section:
    """A section's document: tiles with a picture in (row, col) order, and what is wrong with the others."""

    z: int
    status: str
    tiles: tuple[Tile, ...]
    problems: tuple[str, ...]

    @property
    def origin_px(self) -> tuple[float, float]:
        """Least nominal x and y of its tiles."""
        return min(t.x_px for t in self.tiles), min(t.y_px for t in self.tiles)


def section_path(z: int) -> str:
    return f"sections/{z:06d}.json"


def parse_section(document: Mapping[str, Any]) -> Section:
    """A section of a tile_set. Tiles that appear twice count once, the first usable one."""
    tiles: dict[tuple[int, int], Tile] = {}
    problems = []
    for entry in document.get("tiles", []):
        row, col = int(entry["row"]), int(entry["col"])
        status = entry.get("status", "ok")
        if status not in USABLE or not entry.get("uri"):
            problems.append(f"tile {row}_{col}: {entry.get('problem') or status}")
        elif (row, col) not in tiles:
            tiles[row, col] = Tile(
                row, col, float(entry["x_px"]), float(entry["y_px"]),
                int(entry["width"]), int(entry["height"]), str(entry["uri"]),
            )  # fmt: skip
    problems = [p for p in problems if tuple(int(n) for n in p[5:].split(":")[0].split("_")) not in tiles]
    return Section(
        int(document["z"]), str(document.get("status", "ok")), tuple(tiles[k] for k in sorted(tiles)), tuple(problems)
    )


class TileReader:
    """Decoded tiles of one section, uint8 (y, x), the least recently used ones dropped beyond a number of bytes.

    Threads may share it.
    """

    def __init__(self, grey_range: tuple[float, float] | None, cache_bytes: int) -> None:
        self._grey_range = grey_range
        self._cache_bytes = cache_bytes
        self._kept: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()
        self._lock = Lock()

    def read(self, tile: Tile) -> np.ndarray:
        """The tile's pixels. Raises TaskError (damaged), UserError (needs grey_range)."""
        with self._lock:  # also while it is decoded: others want the same tile
            return self._read(tile)

    def _read(self, tile: Tile) -> np.ndarray:
        key = (tile.row, tile.col)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        picture = to_uint8(read_image(tile.uri), self._grey_range, tile.uri)
        if picture.shape != (tile.height, tile.width):
            raise TaskError(
                f"tile {tile.uri} is {picture.shape[1]} x {picture.shape[0]} px, "
                f"the tile set says {tile.width} x {tile.height}"
            )
        self._kept[key] = picture
        while len(self._kept) > 1 and sum(p.nbytes for p in self._kept.values()) > self._cache_bytes:
            self._kept.popitem(last=False)
        return picture


def read_image(uri: str) -> np.ndarray:
    """A grey picture (y, x) from a TIFF, PNG or JPEG on any store, in its own type. Raises TaskError if damaged."""
    import io

    import cv2
    import tifffile

    path = local_path(uri)
    try:
        if path is not None:
            data = path.read_bytes()
        else:
            folder, name = uri.rsplit("/", 1)
            data = _store(folder).get(name)
    except StoreError:
        raise  # the store's fault, not the tile's: to be tried again
    except (OSError, HappyError) as error:
        raise TaskError(f"tile {uri} cannot be read: {error}") from error
    try:
        if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            picture: np.ndarray | None = tifffile.imread(io.BytesIO(data))
        else:
            picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except Exception as error:  # decoders raise whatever they like on damaged bytes
        raise TaskError(f"tile {uri} is damaged: {error}") from error
    if picture is None:
        raise TaskError(f"tile {uri} is damaged, or neither TIFF, PNG nor JPEG")
    return _grey(np.squeeze(np.asarray(picture)), uri)


@lru_cache(maxsize=64)
def _store(folder: str) -> Store:
    """Opened once, so that tiles of a folder share connections."""
    return Store(folder)


def _grey(picture: np.ndarray, uri: str) -> np.ndarray:
    import cv2

    if picture.ndim == 3 and picture.shape[2] in (3, 4):
        picture = np.asarray(cv2.cvtColor(picture[..., :3], cv2.COLOR_BGR2GRAY))
    if picture.ndim != 2:
        raise TaskError(f"tile {uri} is no single grey picture: its shape is {picture.shape}")
    return np.asarray(picture)


def to_uint8(picture: np.ndarray, grey_range: tuple[float, float] | None, uri: str) -> np.ndarray:
    """8 bits; with a range, low..high → 0..255."""
    if grey_range is None:
        if picture.dtype != np.uint8:
            raise UserError(
                f"tile {uri} has {picture.dtype} pixels: set grey_range to the values that become 0 and 255"
            )
        return np.ascontiguousarray(picture)
    low, high = grey_range
    scaled = (picture.astype(np.float32) - low) * (255.0 / (high - low))
    return np.asarray(np.clip(np.rint(scaled), 0, 255), dtype=np.uint8)


def neighbours(tiles: Sequence[Tile], stage_error_px: float | None) -> list[tuple[int, int]]:
    """Pairs of indices a < b of tiles that may overlap given the stage's error; None: any error.

    Tiles that are diagonal neighbours in the grid count only where their nominal overlap is large
    enough to match; the seams along the sides place them well enough.
    """
    pairs = []
    for a, first in enumerate(tiles):
        for b in range(a + 1, len(tiles)):
            second = tiles[b]
            rows, cols = abs(first.row - second.row), abs(first.col - second.col)
            over_x = min(first.x_px + first.width, second.x_px + second.width) - max(first.x_px, second.x_px)
            over_y = min(first.y_px + first.height, second.y_px + second.height) - max(first.y_px, second.y_px)
            if rows + cols == 1:
                # The next one in the grid: they overlap, whatever the positions say.
                slack = max(first.width, first.height) if stage_error_px is None else stage_error_px
                if min(over_x, over_y) > -slack:
                    pairs.append((a, b))
            elif min(over_x, over_y) >= 48:
                pairs.append((a, b))
    return pairs
