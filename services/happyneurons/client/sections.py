"""Sections as they are reported, from what microscopes and people write."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from happyneurons.acquisition.metadata import ACQUISITION_FILE, AcquisitionDocument, SectionDocument, read_document
from happyneurons.errors import UserError
from happyneurons.v1 import acquisition_pb2


def section_message(section: acquisition_pb2.Section | Mapping[str, Any] | Path | str) -> acquisition_pb2.Section:
    """A section to report: a message, its fields as a mapping, or a JSON file.

    A file holds either the message's fields, or what an acquisition folder keeps of a section
    (`section.json`; its tiles lie beside it, and the thickness stands in the folder's
    `acquisition.json`). Raises UserError if it is neither.
    """
    if isinstance(section, acquisition_pb2.Section):
        return section
    if isinstance(section, Mapping):
        return _parse(dict(section), "section")
    path = Path(section)
    try:
        document = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"section {path}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"section {path}: not JSON ({error})") from None
    if isinstance(document, dict) and "acquired_at" in document:
        return _from_folder(path)
    return _parse(document, str(path))


def _parse(fields: Any, where: str) -> acquisition_pb2.Section:
    try:
        return json_format.ParseDict(fields, acquisition_pb2.Section())
    except (json_format.ParseError, AttributeError, TypeError) as error:
        raise UserError(f"{where}: not a section: {error}") from None


def _from_folder(path: Path) -> acquisition_pb2.Section:
    """The section of a `FOLDER/sections/{z:06d}/section.json`."""
    document = read_document(path, SectionDocument)
    acquisition = path.resolve().parents[2] / ACQUISITION_FILE
    thickness = read_document(acquisition, AcquisitionDocument).voxel_size_nm_xyz[2] if acquisition.exists() else 0.0
    message = acquisition_pb2.Section(
        z=document.z,
        pixel_size_nm=document.pixel_size_nm,
        thickness_nm=thickness,
        tiles=[
            acquisition_pb2.Tile(
                uri=(path.resolve().parent / t.file).as_uri(), row=t.row, column=t.col, x_nm=t.stage_x_nm,
                y_nm=t.stage_y_nm, width_px=t.width_px, height_px=t.height_px,
            )
            for t in document.tiles
        ],
    )  # fmt: skip
    try:
        message.acquire_time.FromJsonString(document.acquired_at)
    except ValueError:
        raise UserError(f"{path}: acquired_at: expected a time such as 2024-05-01T12:00:00+00:00") from None
    return message
