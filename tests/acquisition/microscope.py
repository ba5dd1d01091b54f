"""A microscope for tests: small sections in an acquisition folder, whenever a test wants one."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import tifffile

from happyneurons.acquisition import metadata

WIDTH, HEIGHT, COLS = 40, 30, 2
NM = 4.0


def begin(folder: Path, z_range: tuple[int, int]) -> Path:
    """acquisition.json of sections of 2 x 1 tiles."""
    document = metadata.AcquisitionDocument(
        voxel_size_nm_xyz=(NM, NM, 30.0), cols=COLS, rows=1, tile_width_px=WIDTH, tile_height_px=HEIGHT,
        overlap_px=8, z_range=z_range, pace_s=0,
    )  # fmt: skip
    metadata.write_document(folder / metadata.ACQUISITION_FILE, document)
    return folder


def tile_bytes(z: int, col: int, attempt: int = 0) -> bytes:
    pixels = np.random.default_rng([z, col, attempt]).integers(0, 256, (HEIGHT, WIDTH), np.uint8)
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, metadata=None)
    return buffer.getvalue()


def photograph(folder: Path, z: int, attempt: int = 0) -> Path:
    """A section with its section.json last; other attempts show something else. Returns its folder."""
    place = metadata.section_folder(folder, z)
    entries = []
    for col in range(COLS):
        name = metadata.tile_file(0, col)
        metadata.write_file(place / name, tile_bytes(z, col, attempt))
        entries.append(metadata.TileEntry(
            file=name, row=0, col=col, stage_x_nm=1000.0 + col * 32 * NM, stage_y_nm=500.0,
            width_px=WIDTH, height_px=HEIGHT,
        ))  # fmt: skip
    document = metadata.SectionDocument(
        z=z, acquired_at=f"2026-01-02T03:04:{attempt:02d}+00:00", pixel_size_nm=NM, tiles=tuple(entries)
    )
    metadata.write_document(place / metadata.SECTION_FILE, document)
    return place
