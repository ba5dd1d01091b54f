"""Whether a tile's file holds the picture it should."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


@dataclass(frozen=True)
class TileFacts:
    """What a tile's file holds. status: ok | missing | truncated | wrong_size | wrong_type | duplicate | blank."""

    status: str
    problem: str = ""
    width: int = 0
    height: int = 0
    dtype: str = ""
    sha256: str = ""
    size_bytes: int = 0
    data: bytes = b""


def decode(data: bytes) -> np.ndarray:
    """The picture in a TIFF, PNG or JPEG, decoded to its last pixel. Raises ValueError if damaged."""
    if not data:
        raise ValueError("the file is empty")
    try:
        if data[:4] in TIFF:
            import tifffile

            with tifffile.TiffFile(io.BytesIO(data)) as file:
                page = file.pages[0]
                # An uncompressed TIFF cut short would else be read as far as it goes.
                ends = [o + n for o, n in zip(page.dataoffsets, page.databytecounts, strict=True)]
                if not ends or max(ends) > len(data):
                    raise ValueError(f"it ends after {len(data)} of {max(ends, default=0)} bytes")
                return np.asarray(page.asarray())
        # Pillow refuses pictures that are cut short; OpenCV returns what there is of them.
        from PIL import Image

        with Image.open(io.BytesIO(data)) as picture:
            return np.asarray(picture)
    except Exception as error:
        text = str(error).strip().splitlines()
        raise ValueError(text[0] if text else type(error).__name__) from error


def read_header(path: Path) -> tuple[int, int, str] | None:
    """(width, height, dtype) without decoding; None if the file cannot tell."""
    try:
        with path.open("rb") as file:
            magic = file.read(4)
        if magic in TIFF:
            import tifffile

            with tifffile.TiffFile(path) as tiff:
                page = tiff.pages[0]
                return int(page.shape[1]), int(page.shape[0]), str(np.dtype(page.dtype))
        from PIL import Image

        with Image.open(path) as picture:
            # Only the mode's type: one row is decoded lazily by Pillow's own table.
            dtype = {"I;16": "uint16", "I;16B": "uint16", "I": "int32", "F": "float32"}.get(picture.mode, "uint8")
            return picture.width, picture.height, dtype
    except Exception:  # noqa: BLE001 - decoders raise whatever they like on damaged bytes
        return None


def usual_form(paths: Iterable[Path]) -> tuple[int, int, str] | None:
    """The most common (width, height, dtype) of pictures, by their headers; of equals the smallest."""
    forms = Counter(form for form in map(read_header, paths) if form is not None)
    return min(forms, key=lambda form: (-forms[form], form)) if forms else None


def check_tile(path: Path | None, size: tuple[int, int], dtype: str, blank_std: float, keep: bool) -> TileFacts:
    """Read a tile whole and judge it. size: (width, height) it must have. keep: leave its bytes in `data`."""
    if path is None:
        return TileFacts("missing", "there is no such file")
    try:
        data = path.read_bytes()
    except OSError as error:
        return TileFacts("missing", f"{path}: {error.strerror or error}")
    facts = TileFacts("ok", sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data), data=data if keep else b"")
    try:
        picture = decode(data)
    except ValueError as error:
        return replace(facts, status="truncated", problem=f"{path} is truncated or damaged: {error}")
    if picture.ndim != 2:
        return replace(facts, status="wrong_type", problem=f"{path} is no single grey picture (shape {picture.shape})")
    height, width = picture.shape
    facts = replace(facts, width=width, height=height, dtype=str(picture.dtype))
    if (width, height) != size:
        problem = f"{path} has {width} x {height} px, expected {size[0]} x {size[1]}"
        return replace(facts, status="wrong_size", problem=problem)
    if str(picture.dtype) != dtype:
        return replace(facts, status="wrong_type", problem=f"{path} has {picture.dtype} pixels, expected {dtype}")
    if float(picture.std()) < blank_std:
        return replace(facts, status="blank", problem=f"{path} shows nothing (sd {float(picture.std()):.2f})")
    return facts


def mark_duplicates(tiles: list[tuple[str, TileFacts]]) -> list[TileFacts]:
    """Facts of a section's (name, facts); the later ones of tiles with equal bytes become duplicates."""
    first: dict[str, str] = {}
    marked = []
    for name, facts in tiles:
        if facts.status == "ok":
            if facts.sha256 in first:
                problem = f"{name} has the same bytes as {first[facts.sha256]}"
                marked.append(replace(facts, status="duplicate", problem=problem))
                continue
            first[facts.sha256] = name
        marked.append(facts)
    return marked
