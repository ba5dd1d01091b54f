"""Stacks of pictures: a folder with a TIFF (or PNG, to read) file for each section, or one file of many pages.

A section's z is the last number in its file's name; pages of one file count from 0 unless it says
otherwise. Voxel size and offset: what our own writer leaves in the description (JSON, as tifffile writes and
reads it), else OME-XML, else ImageJ's tags.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from happyneurons.errors import TaskError, UserError
from happyneurons.formats.base import Reader, ReadOptions, Sizes, Writer, pick_channel, pick_level
from happyneurons.formats.damage import reading
from happyneurons.formats.location import Location
from happyneurons.formats.pages import Page, page_of_picture, pages_of
from happyneurons.formats.tiff_metadata import description, placement
from happyneurons.store.documents import Store
from happyneurons.store.triples import Triple, triple

PICTURES = (".tif", ".tiff", ".png")


def open_reader(location: Location, options: ReadOptions) -> StackReader:
    pick_level(options.mip, 1, str(location))
    return StackReader(location, options)


class StackReader(Reader):
    sections = True

    def __init__(self, location: Location, options: ReadOptions) -> None:
        self.uri = str(location)
        path = location.path
        single = location.name.lower().endswith(PICTURES) and (path is None or path.is_file())
        if single:
            self._store = Store(location.root.rpartition("/")[0])
            files = {0: location.name}
        else:
            self._store = location.store()
            files = _numbered(self._store, self.uri)
        with self._pages(next(iter(files.values()))) as pages:
            first, self._pages_each = pages[0], len(pages)
            size, offset, self.labels = placement(first)
        if len(files) > 1 and self._pages_each > 1:
            raise UserError(f"{self.uri}: {next(iter(files.values()))} has {self._pages_each} pages; convert it alone")
        self._multipage = self._pages_each > 1
        if single or self._multipage:  # the pages of one file are the sections
            files = {offset[2] + i: next(iter(files.values())) for i in range(self._pages_each)}
        self._files = files
        self._z0 = z0 = min(files)
        count = max(self._files) + 1 - z0
        missing = sorted(set(range(z0, z0 + count)) - set(self._files))
        if missing and not options.fill_gaps:
            shown = ", ".join(map(str, missing[:10])) + (" …" if len(missing) > 10 else "")
            raise UserError(
                f"{self.uri}: {len(missing)} of {count} sections are missing: {shown}; put pictures there, or have "
                "them filled with zeros: fill_gaps=true"
            )
        self._channel = pick_channel(options, first.channels, self.uri)
        self._shape, self.dtype = first.shape_yx, first.dtype
        self.start_zyx: Triple = (z0, offset[1], offset[0])
        self.stop_zyx = triple(np.add(self.start_zyx, (count, *self._shape)))
        self.voxel_size_nm_xyz: Sizes = size

    def check(self) -> None:
        """Every page has the size and type of the first. Raises UserError."""
        if self._store.uri.startswith("file://"):  # elsewhere it would mean to fetch everything
            if self._multipage:
                with self._pages(self._files[self._z0]) as pages:
                    for z, page in enumerate(pages, self._z0):
                        self._fits(z, page, UserError)
                return
            for z, name in self._files.items():
                with self._pages(name) as pages:
                    self._fits(z, pages[0], UserError)

    def _fits(self, z: int, page: Page, error: type[UserError | TaskError]) -> None:
        if page.shape_yx != self._shape or page.dtype != self.dtype:
            (h, w), (height, width) = page.shape_yx, self._shape
            raise error(
                f"{self.uri}: section {z} ({self._files[z]}) is {w}×{h} px {page.dtype}, the first one "
                f"{width}×{height} px {self.dtype}; sections of a volume have one size: crop or pad it, or align them "
                "first"
            )

    @contextmanager
    def _pages(self, name: str) -> Iterator[Sequence[Page]]:
        """The pages of a file. Raises TaskError if it is damaged, UserError if it is no picture."""
        local = self._store.uri.startswith("file://")
        where = self._store.url(name)
        if name.lower().endswith(".png"):
            yield [page_of_picture(self._store.get(name), where)]
            return
        path = Location(where).path
        with pages_of(path if local and path else io.BytesIO(self._store.get(name)), where) as pages:
            yield pages

    def read(self, start_zyx: Sequence[int], stop_zyx: Sequence[int]) -> np.ndarray:
        block = np.zeros([b - a for a, b in zip(start_zyx, stop_zyx, strict=True)], self.dtype)
        y0, x0 = self.start_zyx[1:]
        rows = slice(int(start_zyx[1]) - y0, int(stop_zyx[1]) - y0)
        columns = slice(int(start_zyx[2]) - x0, int(stop_zyx[2]) - x0)
        if self._multipage:
            with self._pages(self._files[self._z0]) as pages:
                for i, z in enumerate(range(start_zyx[0], stop_zyx[0])):
                    self._section(block[i], z, pages[z - self._z0], rows, columns)
            return block
        for i, z in enumerate(range(start_zyx[0], stop_zyx[0])):
            if z in self._files:
                with self._pages(self._files[z]) as pages:
                    self._section(block[i], z, pages[0], rows, columns)
        return block

    def _section(self, target: np.ndarray, z: int, page: Page, rows: slice, columns: slice) -> None:
        self._fits(z, page, TaskError)
        low, high = (z, rows.start, columns.start), (z + 1, rows.stop, columns.stop)
        with reading(f"{self.uri}, {self._files[z]}", low, high):
            target[...] = page.read(rows, columns, self._channel)


def _numbered(store: Store, where: str) -> dict[int, str]:
    """File name by section number, ascending. Raises UserError if names do not tell."""
    names = sorted(p for p in store.list("") if "/" not in p and p.lower().endswith(PICTURES))
    if not names:
        raise UserError(f"{where}: there are no TIFF or PNG files")
    if len(names) == 1:
        numbers = re.findall(r"\d+", names[0].rpartition(".")[0])
        return {int(numbers[-1]) if numbers else 0: names[0]}
    found: dict[int, str] = {}
    for name in names:
        numbers = re.findall(r"\d+", name.rpartition(".")[0])
        if not numbers:
            raise UserError(f"{where}: {name} has no number in its name; sections are ordered by the last one")
        z = int(numbers[-1])
        if z in found:
            raise UserError(f"{where}: {found[z]} and {name} both are section {z} (the last number in the name)")
        found[z] = name
    return dict(sorted(found.items()))


class TiffWriter(Writer):
    format, title = "tiff", "a stack of TIFF files"
    label_dtypes = None
    pyramids = False

    def check(self) -> None:
        super().check()
        if self.levels[0].start_zyx[0] < 0:
            raise UserError(
                f"target {self.location}: sections are named by their z, which cannot be below 0 "
                f"({self.levels[0].start_zyx[0]}); move the volume with offset_xyz"
            )

    def occupied(self) -> bool:
        return any(p.lower().endswith(PICTURES) and "/" not in p for p in self.location.target().list(""))

    def prepare(self) -> None:
        self.location.target()

    def unit_zyx(self, level: int) -> Triple:
        return (1, *self.levels[0].shape_zyx[1:])

    def write(self, level: int, start_zyx: Sequence[int], block_zyx: np.ndarray) -> None:
        import tifffile

        info, store = self.levels[0], self.location.target()
        x_nm, y_nm, _ = info.voxel_size_nm_xyz
        options: dict[str, Any] = {"compression": "zlib"} if self.options.compress else {}
        for z, section in enumerate(block_zyx, int(start_zyx[0])):
            file = io.BytesIO()
            tifffile.imwrite(
                file, section, photometric="minisblack", metadata=description(info, z), software="happyneurons",
                resolution=(1e7 / x_nm, 1e7 / y_nm), resolutionunit="CENTIMETER", **options,
            )  # fmt: skip
            store.put(f"z{z:06d}.tif", file.getvalue())

    def read(self, level: int, start_zyx: Sequence[int], stop_zyx: Sequence[int]) -> np.ndarray:
        return StackReader(self.location, ReadOptions()).read(start_zyx, stop_zyx)
