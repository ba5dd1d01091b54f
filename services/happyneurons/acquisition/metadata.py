"""The documents of an acquisition folder, in the manner of a microscope's own metadata files.

::

    FOLDER/acquisition.json                           what is acquired: AcquisitionDocument
    FOLDER/sections/{z:06d}/tile_r{row}_c{col}.tif    one uint8 picture a tile
    FOLDER/sections/{z:06d}/section.json              SectionDocument; written last: the section is complete
    FOLDER/truth/…                                    simulated acquisitions only, see `truth`
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from happyneurons.errors import UserError

ACQUISITION_FILE = "acquisition.json"
SECTION_FILE = "section.json"


class TileEntry(BaseModel):
    """One tile. The stage position is the nominal one, of the middle of the tile's upper left pixel."""

    model_config = ConfigDict(frozen=True)
    file: str = Field(description="name beside section.json")
    row: int = Field(ge=0)
    col: int = Field(ge=0)
    stage_x_nm: float
    stage_y_nm: float
    width_px: int = Field(ge=1)
    height_px: int = Field(ge=1)


class SectionDocument(BaseModel):
    """`section.json`: one section as the microscope reports it."""

    model_config = ConfigDict(frozen=True)
    schema_version: Literal[1] = 1
    z: int
    acquired_at: str = Field(description="UTC, ISO 8601")
    pixel_size_nm: float = Field(gt=0)
    tiles: tuple[TileEntry, ...]


class AcquisitionDocument(BaseModel):
    """`acquisition.json`: what a folder of sections holds, or will hold when it is complete."""

    model_config = ConfigDict(frozen=True)
    schema_version: Literal[1] = 1
    voxel_size_nm_xyz: tuple[float, float, float]
    cols: int = Field(ge=1)
    rows: int = Field(ge=1)
    tile_width_px: int = Field(ge=1)
    tile_height_px: int = Field(ge=1)
    overlap_px: int = Field(ge=0, description="nominal overlap of neighbouring tiles")
    z_range: tuple[int, int] = Field(description="first section and one past the last")
    pace_s: float = Field(ge=0, description="seconds from one section to the next; 0: as fast as possible")
    simulation: dict[str, Any] | None = Field(None, description="settings of a simulated acquisition")


def section_folder(folder: Path, z: int) -> Path:
    return folder / "sections" / f"{z:06d}"


def tile_file(row: int, col: int) -> str:
    return f"tile_r{row}_c{col}.tif"


D = TypeVar("D", bound=BaseModel)


def read_document(path: Path, kind: type[D]) -> D:
    """Read one of the documents above. Raises UserError that says what is wrong with it."""
    try:
        return kind.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"there is no {path}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path}{': ' + where if where else ''}: {first['msg']}") from None


def write_document(path: Path, document: BaseModel | dict[str, Any]) -> None:
    """Write JSON so that readers see the whole document or none."""
    value = document.model_dump(mode="json") if isinstance(document, BaseModel) else document
    write_file(path, (json.dumps(value, indent=1) + "\n").encode())


def write_file(path: Path, data: bytes) -> None:
    """Write a file under another name and rename it, so that it is never seen half written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_bytes(data)
    part.replace(path)
