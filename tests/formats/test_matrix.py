"""Every format to every other: voxels exact, with type, voxel size, offset and what they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from happyneurons.formats.registry import FORMATS, WRITABLE, make_writer
from tests.formats.volumes import (
    OPTIONS,
    SIZE_NM_XYZ,
    START_ZYX,
    info_of,
    opened,
    voxels,
    whole,
    write,
    write_levels,
    write_n5,
)

CELLS = [
    (source, target, dtype)
    for source in FORMATS
    for target in WRITABLE
    for dtype in ("uint8", "uint32", "uint64")
    # KNOSSOS's labels have 64 bits; what it refuses is tested below.
    if not (dtype == "uint32" and "knossos" in (source, target))
]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], str]:
    found = {}
    for source, _, dtype in CELLS:
        if (source, dtype) not in found:
            folder = tmp_path_factory.mktemp("source")
            array = voxels(dtype)
            found[source, dtype] = write_n5(folder, array) if source == "n5" else write(folder, source, array)
    return found


@pytest.mark.parametrize(("source", "target", "dtype"), CELLS)
def test_cell(source: str, target: str, dtype: str, sources: dict[tuple[str, str], str], tmp_path: Path) -> None:
    reader = opened(sources[source, dtype])
    array = whole(reader)
    labels = dtype != "uint8" if reader.labels is None else reader.labels
    copy = opened(
        write(tmp_path, target, array, labels=labels, start_zyx=reader.start_zyx, size=reader.voxel_size_nm_xyz)
    )
    for volume in (reader, copy):
        np.testing.assert_array_equal(whole(volume), voxels(dtype))
        assert volume.dtype == np.dtype(dtype)
        assert volume.start_zyx == START_ZYX
        assert volume.voxel_size_nm_xyz == pytest.approx(SIZE_NM_XYZ, rel=1e-12)
        assert volume.labels in (None, dtype != "uint8")


@pytest.mark.parametrize("name", WRITABLE)
def test_a_box_anywhere_is_that_part_of_the_whole(name: str, tmp_path: Path) -> None:
    array = voxels("uint8")
    reader = opened(write(tmp_path, name, array))
    low, high = (2, 9, 13), (19, 30, 47)
    got = reader.read(np.add(START_ZYX, low).tolist(), np.add(START_ZYX, high).tolist())
    np.testing.assert_array_equal(got, array[tuple(slice(*p) for p in zip(low, high, strict=True))])


@pytest.mark.parametrize("name", WRITABLE)
def test_the_same_bytes_in_any_order_and_twice(name: str, tmp_path: Path) -> None:
    def files(folder: Path) -> dict[str, bytes]:
        return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}

    array = voxels("uint64")
    for name_of in ("a", "b"):
        (tmp_path / name_of).mkdir()
    write(tmp_path / "a", name, array)
    target = tmp_path / "b" / ("volume.h5" if name == "hdf5" else "volume")
    writer = make_writer(str(target), name, [info_of(array)], OPTIONS)
    write_levels(writer, array)
    # As a second attempt does that finds some tasks done, and does others again.
    from happyneurons.formats.blocks import boxes

    info = writer.levels[0]
    writer = make_writer(str(target), name, [info], OPTIONS)
    writer.prepare()
    for start, stop in reversed(list(boxes(info.start_zyx, info.stop_zyx, writer.grid_zyx(0), writer.unit_zyx(0)))):
        at = tuple(slice(a - o, b - o) for a, b, o in zip(start, stop, START_ZYX, strict=True))
        writer.write(0, start, np.ascontiguousarray(array[at]))
    writer.close(int(array.max()))
    assert files(tmp_path / "a") == files(tmp_path / "b")
