"""Layout `batch`: sections of an open run, as the microscope reported them.

A batch document is written by the orchestrator (docs/acquisition.md)::

    {"schema_version": 1, "sections": [{"z", "version", "pixel_size_nm", "thickness_nm",
     "tiles": [{"uri", "row", "column", "x_nm", "y_nm", "width_px", "height_px", "sha256"}]}]}

Its sections need not follow one another: those between them are in other batches, not missing.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from happyneurons.errors import NotFoundError, UserError
from happyneurons.stages.ingest.layouts import Listing, TilePlan
from happyneurons.store.documents import Store, canonical_json, local_path, normalize_uri


class _Tile(BaseModel):
    model_config = ConfigDict(frozen=True)
    uri: str
    row: int = Field(ge=0)
    column: int = Field(ge=0)
    x_nm: float
    y_nm: float
    width_px: int = Field(ge=1)
    height_px: int = Field(ge=1)
    sha256: str = ""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True)
    z: int
    version: int = 1
    pixel_size_nm: float = Field(gt=0)
    thickness_nm: float = Field(0, ge=0)
    tiles: tuple[_Tile, ...]


class _Batch(BaseModel):
    model_config = ConfigDict(frozen=True)
    schema_version: int = Field(ge=1, le=1)
    sections: tuple[_Section, ...] = Field(min_length=1)


def is_batch(source: str, layout: str) -> bool:
    """Whether a source is a batch document."""
    return layout == "batch" or (layout == "auto" and source.endswith(".json"))


def list_batch(source: str, z_range: tuple[int, int] | None) -> Listing:
    """The sections of a batch document. Raises UserError if it is not one."""
    batch = _read(source)
    chosen = [s for s in batch.sections if z_range is None or z_range[0] <= s.z < z_range[1]]
    if not chosen:
        raise UserError(f"source {source}: it has no section in z_range {z_range}")
    sizes = {(s.pixel_size_nm, s.thickness_nm) for s in chosen}
    if len(sizes) > 1:
        raise UserError(f"source {source}: its sections differ in pixel size or thickness: {sorted(sizes)} nm")
    sections = {s.z: tuple(_plan(t, s.pixel_size_nm) for t in _ordered(s)) for s in chosen}
    pixel, thickness = next(iter(sizes))
    return Listing(sections, {}, pixel, thickness or None, sparse=True)


def batch_fingerprint(source: str) -> str:
    """Identity of a batch: its document and, for tiles without a sha256, their size and time of change."""
    batch = _read(source)
    digest = hashlib.sha256(canonical_json(batch.model_dump(mode="json")))
    for tile in (t for section in batch.sections for t in _ordered(section) if not t.sha256):
        digest.update(canonical_json([tile.uri, *_stat(tile.uri)]))
    return digest.hexdigest()


def _ordered(section: _Section) -> list[_Tile]:
    return sorted(section.tiles, key=lambda t: (t.row, t.column))


def _plan(tile: _Tile, pixel_size_nm: float) -> TilePlan:
    path = local_path(tile.uri)
    return TilePlan(
        tile.row, tile.column, path, tile.x_nm / pixel_size_nm, tile.y_nm / pixel_size_nm,
        (tile.width_px, tile.height_px), tile.uri, "" if path is not None else tile.uri, tile.sha256,
    )  # fmt: skip


def _read(source: str) -> _Batch:
    uri = normalize_uri(source)
    folder, name = uri.rsplit("/", 1)
    path = local_path(uri)
    if path is not None and not path.is_file():  # opening a store would make the folder
        raise UserError(f"source {source}: there is no {path}")
    try:
        batch = _Batch.model_validate_json(Store(folder).get(name))
    except NotFoundError:
        raise UserError(f"source {source}: there is no such batch document") from None
    except (ValidationError, json.JSONDecodeError) as error:
        text = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise UserError(f"source {source}: no batch of sections: {text}") from None
    for section in batch.sections:
        if not all(math.isfinite(v) for t in section.tiles for v in (t.x_nm, t.y_nm)):
            raise UserError(f"source {source}: section {section.z} has a tile without a finite position")
    return batch


def _stat(uri: str) -> tuple[int, int]:
    """(bytes, time of change in ns) of a tile, -1 where it is not there; objects in cloud stores have no time here."""
    path: Path | None = local_path(uri)
    try:
        if path is not None:
            status = path.stat()
            return status.st_size, status.st_mtime_ns
        folder, name = uri.rsplit("/", 1)
        return Store(folder).stat(name)[0], -1
    except (OSError, NotFoundError):
        return -1, -1
