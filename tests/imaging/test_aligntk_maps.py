"""AlignTK's map files: bytes by hand, there and back, missing places, broken files."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from happyneurons.errors import UserError
from happyneurons.imaging.aligntk_maps import map_of, parse_map, read_map, write_map
from happyneurons.imaging.warp import GridWarp

# 3 x 2 nodes 8 px apart from (-1, 2): moved by (+4, -2) px; the last one has no place.
NODES = [(-0.5, 1.75, 1), (0.5, 1.75, 1), (1.5, 1.75, 0.5), (-0.5, 2.75, 1), (0.5, 2.75, 1), (0.0, 0.0, 0)]
BY_HAND = b"M1\n3\n3 2\n-1 2\nz00 z01\n" + b"".join(struct.pack("<3f", *node) for node in NODES)


def bent(origin: tuple[float, float], spacing: float, shape: tuple[int, int]) -> GridWarp:
    plain = GridWarp(origin, spacing, np.zeros((*shape, 2)))
    sources = plain.sources()
    bend = 3 * np.stack([np.sin(sources[..., 1] / 150), np.cos(sources[..., 0] / 200)], axis=-1)
    return plain.with_nodes(sources @ np.array([[1.01, 0.02], [-0.02, 0.99]]) + (12.5, -7.25) + bend)


def test_bytes_by_hand(tmp_path: Path) -> None:
    found = parse_map(BY_HAND)
    assert (found.level, found.first_xy, found.image, found.reference) == (3, (-1, 2), "z00", "z01")
    assert found.valid.tolist() == [[True, True, True], [True, True, False]]
    assert found.encode() == BY_HAND
    (tmp_path / "z00_z01.map").write_bytes(BY_HAND)
    warp = read_map(tmp_path / "z00_z01.map")
    # Nodes are counted from the corner of the first pixel, a warp from its centre.
    np.testing.assert_allclose(warp.origin_xy, [-8.5, 15.5])
    assert warp.spacing_px == 8
    points = np.array([[-8.5, 15.5], [0.0, 18.0], [7.5, 23.5], [3.3, 21.0]])
    np.testing.assert_allclose(warp.map(points), points + (4, -2), atol=1e-6)


def test_a_map_comes_back_as_it_was(tmp_path: Path) -> None:
    """Nodes on AlignTK's grid are not resampled: the bytes of the second file are those of the first."""
    warp = bent((-64.5, 127.5), 64.0, (5, 7))
    write_map(tmp_path / "a.map", warp, "s", "align")
    again = read_map(tmp_path / "a.map")
    assert again.spacing_px == 64
    np.testing.assert_array_equal(again.origin_xy, warp.origin_xy)
    np.testing.assert_allclose(again.nodes, warp.nodes, atol=1e-4)  # float32
    write_map(tmp_path / "b.map", again, "s", "align")
    assert (tmp_path / "a.map").read_bytes() == (tmp_path / "b.map").read_bytes()


@pytest.mark.parametrize(("spacing", "level", "expected"), [(25.0, None, 4), (32.0, None, 5), (40.0, 3, 3)])
def test_other_grids_are_resampled(spacing: float, level: int | None, expected: int) -> None:
    warp = bent((30.0, -20.0), spacing, (9, 12))
    found = map_of(warp, "a", "b", level)
    assert found.level == expected
    back, sources = parse_map(found.encode()).warp(), warp.sources().reshape(-1, 2)
    # Its grid covers the warp's.
    low, high = back.sources()[0, 0], back.sources()[-1, -1]
    assert (low <= sources.min(axis=0)).all()
    assert (high >= sources.max(axis=0)).all()
    # What is lost is the bend within a cell.
    assert np.abs(back.map(sources) - warp.map(sources)).max() < 0.1
    affine = GridWarp.affine([[0.9, 0.1, 3], [-0.2, 1.1, 5]], 500, 300, spacing)
    points = np.array([[0.0, 0.0], [123.4, 77.0], [480.0, 299.0]])
    kept = parse_map(map_of(affine, "a", "b", level).encode()).warp()
    np.testing.assert_allclose(kept.map(points), affine.map(points), atol=1e-3)


def test_missing_places_are_filled_smoothly() -> None:
    warp = bent((-0.5, -0.5), 32.0, (12, 12))
    found = map_of(warp, "a", "b")
    holes = found.confidence.copy()
    holes[4:7, 5:8] = 0  # inside: a fold, say
    holes[:, 10:] = 0  # outside: the neighbour ends there
    places = np.where(holes[..., None] > 0, found.places, 0.0)
    back = type(found)(found.level, found.first_xy, "a", "b", places, holes).warp()
    miss = np.linalg.norm(back.nodes - warp.nodes, axis=-1)
    assert miss[holes > 0].max() < 1e-9
    assert miss[4:7, 5:8].max() < 0.5
    assert miss[:, 10:].max() < 2.5
    # Of an affine map nothing is lost.
    affine = map_of(GridWarp.affine([[1, 0.03, 9], [-0.03, 1, -4]], 300, 300, 32.0), "a", "b")
    ragged = np.zeros(affine.confidence.shape)
    ragged[2:5, 1:6] = 1
    filled = type(affine)(affine.level, affine.first_xy, "a", "b", affine.places, ragged).warp()
    np.testing.assert_allclose((filled.nodes + 0.5) / 32, affine.places, atol=1e-9)


def test_a_single_node_is_a_shift() -> None:
    data = b"M1\n4\n1 1\n2 3\na b\n" + struct.pack("<3f", 2.5, 3.25, 1)
    warp = parse_map(data).warp()
    points = np.array([[0.0, 0.0], [100.0, 40.0]])
    np.testing.assert_allclose(warp.map(points), points + (8, 4))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not an AlignTK map"),
        (b"P5\n3 3\n255\n", "not an AlignTK map"),
        (BY_HAND[:20], "not an AlignTK map"),
        (BY_HAND[:-1], "truncated AlignTK map: 3 x 2 nodes take 72 bytes, there are 71"),
        (BY_HAND + b"\0", "damaged AlignTK map"),
        (BY_HAND.replace(b"\n3 2\n", b"\n0 2\n"), "damaged AlignTK map"),
        (BY_HAND.replace(b"M1\n3\n", b"M1\n300\n"), "damaged AlignTK map"),
        (BY_HAND[:-36] + struct.pack("<3f", np.nan, 0, 1) + BY_HAND[-24:], "no numbers"),
        (BY_HAND[:-72] + bytes(72), "no node has a place"),
    ],
)
def test_broken_files_are_refused(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "x.map").write_bytes(data)
    with pytest.raises(UserError, match=message):
        read_map(tmp_path / "x.map")


def test_what_cannot_be_read_or_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_map(tmp_path / "none.map")
    for name in ("", "two words"):
        with pytest.raises(UserError, match="no white space"):
            write_map(tmp_path / "x.map", GridWarp.identity(), name)
    with pytest.raises(UserError, match="level -1"):
        map_of(GridWarp.identity(), "a", "b", -1)
