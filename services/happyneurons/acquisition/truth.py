"""Where the pixels of a simulated acquisition come from: kept beside it, unknown to the pipeline."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from happyneurons.errors import UserError
from happyneurons.imaging.warp import GridWarp
from happyneurons.store.documents import local_path

Floats = NDArray[np.float64]


class AcquisitionTruth:
    """The truth of a simulated acquisition folder (path or file:// URI).

    Canonical px are (x, y) of the source volume's own coordinates, its offset included; section z
    is the source volume's plane z. Raises UserError if the folder holds no truth.
    """

    def __init__(self, folder: str | Path) -> None:
        path = local_path(str(folder))
        if path is None:
            raise UserError(f"truth of {folder}: only local folders (a path or file:// URI) can be read")
        self.folder = path
        try:
            document = json.loads((path / "truth" / "truth.json").read_bytes())
        except FileNotFoundError:
            raise UserError(f"{path}: there is no truth/truth.json; was it made by `hpn acquire simulate`?") from None
        self.image_uri: str = document["image_uri"]
        self.labels_uri: str | None = document["labels_uri"]
        self.seed: int = document["seed"]
        self._warps = lru_cache(maxsize=32)(self._load)

    def tile_to_canonical(self, z: int, row: int, col: int, xy: ArrayLike) -> Floats | None:
        """(n, 2) px of a tile → canonical px; None if there is no such tile."""
        warp = self.tile_warp(z, row, col)
        return None if warp is None else warp.map(xy)

    def section_to_canonical(self, z: int, xy: ArrayLike) -> Floats | None:
        """(n, 2) px of the ideal section (undisturbed stage) → canonical px; None if there is no such section."""
        warp = self.section_warp(z)
        return None if warp is None else warp.map(xy)

    def tile_warp(self, z: int, row: int, col: int) -> GridWarp | None:
        return self._warp(z, tile_prefix(row, col))

    def section_warp(self, z: int) -> GridWarp | None:
        return self._warp(z, "section")

    def _warp(self, z: int, prefix: str) -> GridWarp | None:
        try:
            return GridWarp.from_arrays(self._warps(z), prefix)
        except KeyError:
            return None

    def _load(self, z: int) -> dict[str, Any]:
        try:
            with np.load(truth_path(self.folder, z), allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}
        except FileNotFoundError:
            return {}


def tile_prefix(row: int, col: int) -> str:
    return f"tile_{row}_{col}"


def truth_path(folder: Path, z: int) -> Path:
    return folder / "truth" / f"{z:06d}.npz"
