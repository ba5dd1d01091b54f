"""Which files of a folder are which tiles of which sections: one function for each layout."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from happyneurons.acquisition.metadata import (
    ACQUISITION_FILE,
    SECTION_FILE,
    AcquisitionDocument,
    SectionDocument,
    read_document,
)
from happyneurons.acquisition.patterns import compile_pattern, place_of, walk
from happyneurons.errors import UserError
from happyneurons.store.documents import Store


@dataclass(frozen=True)
class TilePlan:
    """A tile that ought to be there. x_px, y_px: nominal place of its first pixel, or None where the
    layout says nothing of places (they follow from row, col and the overlap). path None: no such file,
    or one in a cloud store (`uri`)."""

    row: int
    col: int
    path: Path | None
    x_px: float | None = None
    y_px: float | None = None
    size: tuple[int, int] | None = None
    """(width, height) the metadata promise."""
    name: str = ""
    uri: str = ""
    """Of a tile in a cloud store."""
    sha256: str = ""
    """What its bytes must have; empty if nobody said."""

    @property
    def place(self) -> Path | str | None:
        """Its path, or its URI in a cloud store; None if there is no such file."""
        return self.path or self.uri or None

    @property
    def exists(self) -> bool:
        if self.path is not None:
            return self.path.is_file()
        folder, _, name = self.uri.rpartition("/")
        return bool(folder) and Store(folder).exists(name)


@dataclass(frozen=True)
class Listing:
    """Everything a source says without opening its tiles. `sections` and `missing` hold each of `numbers`."""

    sections: dict[int, tuple[TilePlan, ...]]
    missing: dict[int, str] = field(default_factory=dict)
    """Sections of the range that are not there at all, and why."""
    pixel_size_nm: float | None = None
    section_thickness_nm: float | None = None
    sparse: bool = False
    """Sections of the range that are neither here nor missing are somebody else's."""

    @property
    def numbers(self) -> list[int]:
        """The sections to look at, ascending."""
        return sorted({*self.sections, *self.missing}) if self.sparse else list(range(*self.z_range))

    @property
    def z_range(self) -> tuple[int, int]:
        known = [*self.sections, *self.missing]
        return min(known), max(known) + 1

    @property
    def grid(self) -> tuple[int, int]:
        """(cols, rows)."""
        tiles = [tile for section in self.sections.values() for tile in section]
        return max(t.col for t in tiles) + 1, max(t.row for t in tiles) + 1

    def tiles(self) -> Iterator[TilePlan]:
        for z in sorted(self.sections):
            yield from self.sections[z]


def list_source(source: Path, layout: str, pattern: str | None, z_range: tuple[int, int] | None) -> Listing:
    """List a folder (or import list) of tiles. Raises UserError if it does not fit the layout."""
    if layout == "auto":
        layout = _guess(source, pattern)
    if layout == "happyneurons":
        listing = _happyneurons(source, z_range)
    elif layout == "pattern":
        listing = _pattern(source, pattern, z_range)
    else:
        listing = _trakem2(source, z_range)
    if not listing.sections:
        wanted = f" in sections {z_range[0]}:{z_range[1]}" if z_range else ""
        raise UserError(f"source {source}: no tiles found{wanted} (layout {layout})")
    return listing


def listing_files(source: Path) -> Iterator[tuple[str, int, int]]:
    """(relative name, bytes, modification time in ns) of what ingest may read, sorted by name."""
    if source.is_file():
        paths = [source, *(p for p, _, _, _ in _trakem2_lines(source))]
    else:
        paths = sorted(source / name for name in walk(source))
    for path in paths:
        try:
            status = path.stat()
        except OSError:
            yield str(path), -1, -1
            continue
        name = str(path.relative_to(source)) if path.is_relative_to(source) else str(path)
        yield name, status.st_size, status.st_mtime_ns


def _guess(source: Path, pattern: str | None) -> str:
    if source.is_file():
        return "trakem2"
    if (source / ACQUISITION_FILE).exists():
        return "happyneurons"
    if pattern:
        return "pattern"
    raise UserError(
        f"source {source}: no {ACQUISITION_FILE} in it; for tiles with speaking names set pattern, "
        "for instance pattern='{z}_{row}_{col}.png', or give a TrakEM2 import list (a text file)"
    )


def _happyneurons(folder: Path, z_range: tuple[int, int] | None) -> Listing:
    document = read_document(folder / ACQUISITION_FILE, AcquisitionDocument)
    first, last = z_range or document.z_range
    sections: dict[int, tuple[TilePlan, ...]] = {}
    missing: dict[int, str] = {}
    for z in range(first, last):
        file = folder / "sections" / f"{z:06d}" / SECTION_FILE
        if not file.exists():
            missing[z] = f"there is no {file}"
            continue
        section = read_document(file, SectionDocument)
        nm = section.pixel_size_nm
        sections[z] = tuple(
            TilePlan(
                t.row, t.col, file.parent / t.file, t.stage_x_nm / nm, t.stage_y_nm / nm,
                (t.width_px, t.height_px), t.file,
            )
            for t in sorted(section.tiles, key=lambda t: (t.row, t.col))
        )  # fmt: skip
    return Listing(sections, missing, document.voxel_size_nm_xyz[0], document.voxel_size_nm_xyz[2])


def _pattern(folder: Path, pattern: str | None, z_range: tuple[int, int] | None) -> Listing:
    if not pattern:
        raise UserError("layout pattern: set pattern, for instance '{z}_{row}_{col}.png'")
    compiled = compile_pattern(pattern)
    found: dict[int, dict[tuple[int, int], Path]] = {}
    for name in walk(folder):
        told = place_of(compiled, name)
        if told is None:
            continue
        z, place = told[0], told[1:]
        other = found.setdefault(z, {}).setdefault(place, folder / name)
        if other != folder / name:
            raise UserError(f"source {folder}: both {other.name} and {name} are section {z}, row and column {place}")
    places = {place for tiles in found.values() for place in tiles}
    if not places:
        return Listing({})
    rows, cols = sorted({r for r, _ in places}), sorted({c for _, c in places})
    # Counting may start at 0 or at 1; the grid may have holes only where every section has them. It is
    # the grid of all sections, so that a part of them is read no differently.
    sections = {
        z: tuple(
            TilePlan(r - rows[0], c - cols[0], tiles.get((r, c)), name=_expected(pattern, z, r, c))
            for r, c in sorted(places)
        )
        for z, tiles in found.items()
        if z_range is None or z_range[0] <= z < z_range[1]
    }
    return Listing(sections, _gaps(sections, z_range, "no file of it fits the pattern"))


def _expected(pattern: str, z: int, row: int, col: int) -> str:
    values = {"{z}": z, "{row}": row, "{col}": col}
    if "(?P<" in pattern:
        return f"row {row}, column {col}"
    for key, value in values.items():
        pattern = pattern.replace(key, str(value))
    return pattern


def _trakem2_lines(file: Path) -> Iterator[tuple[Path, float, float, int]]:
    """(path, x_px, y_px, z) of each line of a TrakEM2 import list: `path<TAB>x<TAB>y<TAB>z[…]`."""
    for number, line in enumerate(file.read_text(errors="replace").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        parts = line.split("\t")
        try:
            path, x, y, z = Path(parts[0].strip()), float(parts[1]), float(parts[2]), float(parts[3])
        except (IndexError, ValueError):
            raise UserError(f"{file}, line {number}: expected 'path<TAB>x<TAB>y<TAB>z', found {line!r}") from None
        if z != int(z):
            raise UserError(f"{file}, line {number}: z must be a whole section number, found {parts[3]}")
        yield path if path.is_absolute() else file.parent / path, x, y, int(z)


def _trakem2(file: Path, z_range: tuple[int, int] | None) -> Listing:
    if not file.is_file():
        raise UserError(f"source {file}: layout trakem2 reads an import list, a text file of 'path<TAB>x<TAB>y<TAB>z'")
    found: dict[int, list[tuple[float, float, Path]]] = {}
    for path, x, y, z in _trakem2_lines(file):
        if z_range is None or z_range[0] <= z < z_range[1]:
            found.setdefault(z, []).append((x, y, path))
    sections = {}
    for z, tiles in found.items():
        rows, cols = _ranks(y for _, y, _ in tiles), _ranks(x for x, _, _ in tiles)
        plans = [
            TilePlan(row, col, path, x, y, None, str(path))
            for (x, y, path), row, col in zip(tiles, rows, cols, strict=True)
        ]
        twice = [place for place, n in Counter((p.row, p.col) for p in plans).items() if n > 1]
        if twice:
            raise UserError(f"{file}: section {z} has more than one tile at row and column {twice[0]}")
        sections[z] = tuple(sorted(plans, key=lambda p: (p.row, p.col)))
    return Listing(sections, _gaps(sections, z_range, f"{file.name} has no tile of it"))


def _ranks(positions: Iterable[float]) -> list[int]:
    """Row (or column) numbers of positions: a new one begins where they leap by more than a third of
    the largest leap, so that stage positions of one row need not be equal."""
    values = list(positions)
    ordered = sorted(values)
    leaps = [b - a for a, b in pairwise(ordered)]
    limit = max(leaps, default=0.0) / 3
    starts = [ordered[0]] + [b for b, leap in zip(ordered[1:], leaps, strict=True) if leap > limit]
    return [sum(value >= start for start in starts) - 1 for value in values]


def _gaps(sections: dict[int, tuple[TilePlan, ...]], z_range: tuple[int, int] | None, why: str) -> dict[int, str]:
    if not sections:
        return {}
    first, last = z_range or (min(sections), max(sections) + 1)
    return {z: why for z in range(first, last) if z not in sections}
