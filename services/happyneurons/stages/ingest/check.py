"""Whether a tile's file holds the picture it should."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from happyneurons.acquisition.tiles import decode, read_header
from happyneurons.errors import NotFoundError
from happyneurons.store.documents import Store
from happyneurons.store.roots import check_path

Place = Path | str
"""A file's path, or the URI of an object in a cloud store."""


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


def read_bytes(place: Place) -> bytes:
    """What a file or object holds. Raises OSError, NotFoundError, StoreError; UserError where it may not be read."""
    if isinstance(place, Path):
        check_path(place)  # lists and links name what they like
        return place.read_bytes()
    folder, _, name = place.rpartition("/")
    return _store(folder).get(name)


@lru_cache(maxsize=64)
def _store(folder: str) -> Store:
    """Opened once, so that tiles of a folder share connections."""
    return Store(folder)


def usual_form(places: Iterable[Place]) -> tuple[int, int, str] | None:
    """The most common (width, height, dtype) of pictures, by their headers; of equals the smallest.

    Raises StoreError.
    """
    forms = Counter(form for form in map(_form, places) if form is not None)
    return min(forms, key=lambda form: (-forms[form], form)) if forms else None


def _form(place: Place) -> tuple[int, int, str] | None:
    if isinstance(place, Path):
        return read_header(place)
    try:
        picture = decode(read_bytes(place))
    except (NotFoundError, ValueError):
        return None
    return picture.shape[1], picture.shape[0], str(picture.dtype)


def check_tile(
    path: Place | None, size: tuple[int, int], dtype: str, blank_std: float, keep: bool, sha256: str = ""
) -> TileFacts:
    """Read a tile whole and judge it. size: (width, height) it must have. keep: leave its bytes in `data`.

    sha256: of its bytes, where somebody said it. Raises StoreError: a store that is away is not the tile's fault.
    """
    if path is None:
        return TileFacts("missing", "there is no such file")
    try:
        data = read_bytes(path)
    except OSError as error:
        return TileFacts("missing", f"{path}: {error.strerror or error}")
    except NotFoundError as error:
        return TileFacts("missing", str(error))
    facts = TileFacts("ok", sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data), data=data if keep else b"")
    if sha256 and facts.sha256 != sha256:
        problem = f"{path} is not the file that was reported: its sha256 is {facts.sha256[:16]}…, not {sha256[:16]}…"
        return replace(facts, status="truncated", problem=problem)
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
