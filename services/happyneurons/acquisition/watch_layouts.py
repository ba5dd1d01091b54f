"""Which sections of a growing folder are finished: one class for each layout.

Folders are looked at again and again, for network file systems tell nobody what changed. So that
10,000 finished sections cost little, they are looked at in turn, some each time; only what is not
finished is looked at every time.
"""

from __future__ import annotations

import hashlib
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from happyneurons.acquisition.metadata import (
    ACQUISITION_FILE,
    SECTION_FILE,
    AcquisitionDocument,
    SectionDocument,
    read_document,
)
from happyneurons.acquisition.patterns import compile_pattern, place_of
from happyneurons.errors import UserError

QUIET_FOLDERS = 50
"""Folders of finished sections that are listed again at a time."""


@dataclass(frozen=True)
class PlannedTile:
    """A tile that ought to be there. x_nm, y_nm: stage position of its upper left pixel; None: it follows
    from row, column and overlap. size: (width, height) px that the metadata promise."""

    path: Path
    row: int
    col: int
    x_nm: float | None = None
    y_nm: float | None = None
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class SectionPlan:
    """A finished section as its folder tells it. completed_at: seconds since 1970, by the file system."""

    z: int
    pixel_size_nm: float
    thickness_nm: float
    tiles: tuple[PlannedTile, ...]
    acquired_at: datetime
    completed_at: float
    overlap: float = 0.0
    """Share of a tile that its neighbour shows too, where tiles have no positions of their own."""
    dtype: str | None = None


class Layout(ABC):
    """The folder as it was at the last `scan`."""

    settling = False
    """Some sections have all their tiles, but not for long enough."""

    @property
    @abstractmethod
    def expected(self) -> range | None:
        """Sections that there will be; None while nobody says."""

    @abstractmethod
    def scan(self, finished: Collection[int]) -> None:
        """Look at the folder. finished: sections that need not be looked at every time."""

    @abstractmethod
    def present(self) -> Iterable[int]:
        """Sections of which there is anything."""

    @abstractmethod
    def complete(self, z: int) -> bool:
        """Whether a section is finished."""

    @abstractmethod
    def signature(self, z: int, tiles: bool = False) -> str:
        """Changes when a section is photographed again; with `tiles` also when any of its files changes."""

    @abstractmethod
    def plan(self, z: int) -> SectionPlan:
        """What a finished section holds. Raises UserError if its metadata cannot be used."""


class OurLayout(Layout):
    """`sections/{z:06d}/`, finished when there is a section.json: it is written last."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._document: AcquisitionDocument | None = None
        self._document_stamp = ""
        self._present: list[int] = []

    @property
    def expected(self) -> range | None:
        return None if self._document is None else range(*self._document.z_range)

    def scan(self, finished: Collection[int]) -> None:
        path = self.folder / ACQUISITION_FILE
        stamp = file_stamp(path)
        if not stamp and self._document is None:
            raise UserError(f"there is no {path} (yet); tiles of other microscopes need --pattern")
        if stamp and stamp != self._document_stamp:
            self._document, self._document_stamp = read_document(path, AcquisitionDocument), stamp
        names = os.listdir(self.folder / "sections") if (self.folder / "sections").exists() else []
        self._present = sorted(int(name) for name in names if name.isdecimal())

    def present(self) -> Iterable[int]:
        return self._present

    def complete(self, z: int) -> bool:
        return bool(file_stamp(self._section_file(z)))

    def signature(self, z: int, tiles: bool = False) -> str:
        file = self._section_file(z)
        stamp = file_stamp(file)
        if not tiles:
            return stamp
        try:
            entries = sorted(os.listdir(file.parent))
        except OSError:
            return stamp
        return _digest(f"{name} {file_stamp(file.parent / name)}" for name in entries)

    def plan(self, z: int) -> SectionPlan:
        assert self._document is not None  # else no section is present
        file = self._section_file(z)
        section = read_document(file, SectionDocument)
        if section.z != z:
            raise UserError(f"{file} is of section {section.z}")
        if not section.tiles:
            raise UserError(f"{file} names no tiles")
        outside = [t.file for t in section.tiles if Path(t.file).name != t.file]
        if outside:
            raise UserError(f"{file}: tile {outside[0]!r} is not a file beside it")
        nm = section.pixel_size_nm
        tiles = tuple(
            PlannedTile(
                file.parent / t.file, t.row, t.col,
                t.stage_x_nm, t.stage_y_nm, (t.width_px, t.height_px),
            )
            for t in sorted(section.tiles, key=lambda t: (t.row, t.col))
        )  # fmt: skip
        try:
            acquired = datetime.fromisoformat(section.acquired_at)
        except ValueError:
            raise UserError(f"{file}: acquired_at: {section.acquired_at!r} is no ISO 8601 time") from None
        if acquired.tzinfo is None:
            acquired = acquired.replace(tzinfo=UTC)
        thickness = self._document.voxel_size_nm_xyz[2]
        return SectionPlan(z, nm, thickness, tiles, acquired, _modified(file), dtype="uint8")

    def _section_file(self, z: int) -> Path:
        return self.folder / "sections" / f"{z:06d}" / SECTION_FILE


class PatternLayout(Layout):
    """Tiles by their names. A section is finished when all its tiles are there and none has changed in size
    or time of modification for `settle_s`."""

    def __init__(
        self,
        folder: Path,
        pattern: str,
        *,
        tiles_per_section: int,
        pixel_size_nm: float,
        thickness_nm: float,
        overlap: float = 0.1,
        sections: tuple[int, int] | None = None,
        settle_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder, self._pattern = folder, compile_pattern(pattern)
        self._count, self._pixel_size_nm, self._thickness_nm = tiles_per_section, pixel_size_nm, thickness_nm
        self._overlap, self._sections, self._settle_s, self._clock = overlap, sections, settle_s, clock
        self._folders: dict[Path, dict[str, tuple[int, int, int]]] = {}
        self._tiles: dict[int, dict[Path, tuple[int, int]]] = {}
        self._since: dict[int, tuple[str, float]] = {}
        self._turn = 0

    @property
    def expected(self) -> range | None:
        return None if self._sections is None else range(*self._sections)

    def scan(self, finished: Collection[int]) -> None:
        quiet = [
            folder for folder, names in self._folders.items()
            if folder != self.folder and names and all(z in finished for z, _, _ in names.values())
        ]  # fmt: skip
        turn = [quiet[(self._turn + i) % len(quiet)] for i in range(min(QUIET_FOLDERS, len(quiet)))]
        self._turn += len(turn)
        skip = set(quiet) - set(turn)
        seen = set(skip)
        waiting = [self.folder]
        while waiting:
            folder = waiting.pop()
            if folder in skip:
                continue
            seen.add(folder)
            waiting += self._list(folder)
        for gone in set(self._folders) - seen:
            self._update(gone, {})
            del self._folders[gone]
        now, self.settling = self._clock(), False
        for z in self._tiles:
            if z not in finished and len(self._tiles[z]) >= self._count:
                self._settled(z, now)

    def present(self) -> Iterable[int]:
        return sorted(z for z, tiles in self._tiles.items() if tiles and self._wanted(z))

    def complete(self, z: int) -> bool:
        return len(self._tiles.get(z, ())) >= self._count and self._settled(z, self._clock())

    def signature(self, z: int, tiles: bool = False) -> str:
        return _digest(f"{path} {file_stamp(path)}" for path in sorted(self._tiles.get(z, ())))

    def plan(self, z: int) -> SectionPlan:
        found = self._tiles[z]
        places: dict[tuple[int, int], Path] = {}
        for path, place in sorted(found.items()):
            if place in places:
                raise UserError(f"both {places[place]} and {path} are section {z}, row and column {place}")
            places[place] = path
        if len(places) != self._count:
            raise UserError(f"section {z} has {len(places)} tiles, expected {self._count}")
        # Counting may start at 0 or at 1.
        row, col = min(r for r, _ in places), min(c for _, c in places)
        tiles = tuple(PlannedTile(path, r - row, c - col) for (r, c), path in sorted(places.items()))
        latest = max(_modified(path) for path in found)
        return SectionPlan(
            z,
            self._pixel_size_nm,
            self._thickness_nm,
            tiles,
            datetime.fromtimestamp(latest, UTC),
            latest,
            self._overlap,
        )

    def _wanted(self, z: int) -> bool:
        return self._sections is None or self._sections[0] <= z < self._sections[1]

    def _settled(self, z: int, now: float) -> bool:
        signature = self.signature(z)
        known, since = self._since.get(z, ("", now))
        if signature != known:
            since = now
            self._since[z] = (signature, now)
        settled = now - since >= self._settle_s
        self.settling |= not settled
        return settled

    def _list(self, folder: Path) -> list[Path]:
        """Take in a folder; returns the folders in it."""
        below, names = [], {}
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.startswith(".") or (folder == self.folder and entry.name == "truth"):
                        continue
                    if entry.is_dir():
                        below.append(folder / entry.name)
                        continue
                    known = self._folders.get(folder, {}).get(entry.name)
                    place = known or place_of(self._pattern, str((folder / entry.name).relative_to(self.folder)))
                    if place is not None:
                        names[entry.name] = place
        except FileNotFoundError:
            if folder == self.folder:
                raise  # not mounted any more, say: that does not unmake its sections
        self._update(folder, names)
        return below

    def _update(self, folder: Path, names: dict[str, tuple[int, int, int]]) -> None:
        before = self._folders.get(folder, {})
        self._folders[folder] = names
        if names == before:
            return
        for name in before.keys() - names.keys():
            del self._tiles[before[name][0]][folder / name]
        for name in names.keys() - before.keys():
            z, row, col = names[name]
            self._tiles.setdefault(z, {})[folder / name] = (row, col)


def file_stamp(path: Path) -> str:
    """Changes whenever a file is written, replaced, or given another time; empty if there is none."""
    try:
        status = path.stat()
    except OSError:
        return ""
    # The time of change, too: tools that copy set the time of modification back.
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None


def _digest(lines: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode(errors="surrogateescape") + b"\n")
    return digest.hexdigest()[:32]
