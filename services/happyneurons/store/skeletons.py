"""Skeletons read one by one: Neuroglancer's precomputed layers, and folders of SWC files.

Formats: google/neuroglancer, skeletons.md; SWC as neuronland.org's "SWC+" has it. Shards
are read by CloudVolume.
"""

from __future__ import annotations

import json
import re
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

from happyneurons.errors import NotFoundError, UserError
from happyneurons.store.documents import Store
from happyneurons.store.layers import open_skeletons

_INFO_TYPE = "neuroglancer_skeletons"
_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class Skeleton:
    """vertices_nm: (n, 3) float64, x y z in nm of the volume. edges: (m, 2) int64 vertex numbers."""

    vertices_nm: np.ndarray
    edges: np.ndarray


class SkeletonLayer:
    """A folder of skeletons. Raises UserError if it holds none that can be read."""

    def __init__(self, store: Store, *, swc_unit_nm: float = 1000.0) -> None:
        self._store, self._swc_unit_nm = store, swc_unit_nm
        self._transform: np.ndarray | None = None
        self._shards: Any = None
        try:
            info = json.loads(store.get("info"))
        except NotFoundError:
            return
        except ValueError as error:
            raise UserError(f"skeletons {store.uri}: its info file is not JSON ({error})") from None
        if info.get("@type") != _INFO_TYPE:
            raise UserError(f"skeletons {store.uri}: its info has @type {info.get('@type')!r}, not {_INFO_TYPE}")
        if info.get("sharding"):
            self._shards = open_skeletons(store.uri).reader
        matrix = info.get("transform") or [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0]
        self._transform = np.array(matrix, np.float64).reshape(3, 4)

    def names(self) -> list[str]:
        """Names of the skeletons: segment ids in ascending order, or names of SWC files."""
        # A folder's own entries alone: one of a million skeletons may have other folders below it.
        entries = (path for path in self._store.list("") if "/" not in path)
        if self._shards is not None:
            files = (path for path in entries if path.endswith(".shard"))
            found_ids = (self._shards.list_labels(path, path=self._folder) for path in files)
            return [str(v) for v in sorted(int(label) for ids in found_ids for label in ids)]
        if self._transform is not None:
            return sorted((p.removesuffix(".gz") for p in entries if _NUMBER.fullmatch(p.removesuffix(".gz"))), key=int)
        found = sorted(path.removesuffix(".swc") for path in entries if path.endswith(".swc"))
        if not found:
            raise UserError(
                f"skeletons {self._store.uri}: neither a precomputed skeleton layer (info) nor a folder of SWC files"
            )
        return found

    def read(self, name: str) -> Skeleton:
        """Raises UserError if its bytes are no skeleton."""
        where = f"skeleton {self._store.url(name)}"
        if self._transform is None:
            return parse_swc(self._store.get(f"{name}.swc"), self._swc_unit_nm, where)
        if self._shards is not None:
            data = self._shards.get_data(int(name), self._folder)
            if data is None:
                raise NotFoundError(where)
            return self._moved(parse_precomputed(bytes(data), where))
        try:
            data = self._store.get(name)
        except NotFoundError:
            import gzip

            data = gzip.decompress(self._store.get(f"{name}.gz"))
        return self._moved(parse_precomputed(data, where))

    @property
    def _folder(self) -> str:
        return self._store.uri.rstrip("/").rpartition("/")[2]

    def _moved(self, found: Skeleton) -> Skeleton:
        assert self._transform is not None
        moved = found.vertices_nm @ self._transform[:, :3].T + self._transform[:, 3]
        return Skeleton(moved, found.edges)


def parse_precomputed(data: bytes, where: str = "skeleton") -> Skeleton:
    """Vertices as stored, before the layer's transform; attributes are left out."""
    if len(data) >= 8:
        vertices, edges = struct.unpack_from("<II", data)
        if len(data) >= 8 + 12 * vertices + 8 * edges:
            xyz = np.frombuffer(data, "<f4", 3 * vertices, 8).reshape(-1, 3).astype(np.float64)
            pairs = np.frombuffer(data, "<u4", 2 * edges, 8 + 12 * vertices).reshape(-1, 2).astype(np.int64)
            if not len(pairs) or pairs.max() < vertices:
                return Skeleton(xyz, pairs)
    raise UserError(f"{where}: not a precomputed skeleton (damaged, or another format)")


def parse_swc(data: bytes, unit_nm: float, where: str = "skeleton") -> Skeleton:
    """SWC text: `id type x y z radius parent` a line, parent -1 at a root, in units of `unit_nm`."""
    rows: list[list[Any]] = []
    for number, line in enumerate(data.decode(errors="replace").splitlines(), start=1):
        words = line.split("#", 1)[0].split()
        if not words:
            continue
        try:
            rows.append([int(words[0]), *(float(w) for w in words[2:5]), int(words[6])])
        except (ValueError, IndexError):
            raise UserError(f"{where}: line {number} is not `id type x y z radius parent`") from None
    place = {row[0]: i for i, row in enumerate(rows)}
    try:
        edges = [(i, place[row[4]]) for i, row in enumerate(rows) if row[4] >= 0]
    except KeyError as error:
        raise UserError(f"{where}: there is no node {error.args[0]}, which is another one's parent") from None
    xyz = np.array([row[1:4] for row in rows], np.float64).reshape(-1, 3)
    return Skeleton(xyz * unit_nm, np.array(edges, np.int64).reshape(-1, 2))
