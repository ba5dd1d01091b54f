"""SWC: trees with parents first, radii and types, as long as the source; loops are opened and told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from osteoid import Skeleton

from happyneurons.cli.main import main
from happyneurons.export import export_layer
from happyneurons.store.documents import Store
from happyneurons.store.shards import sharding_of, write_shard
from happyneurons.store.skeletons import parse_swc

RADIUS = {"id": "radius", "data_type": "float32", "num_components": 1}
TYPE = {"id": "vertex_types", "data_type": "uint8", "num_components": 1}
FOREST, RING, EMPTY, BIG = 7, 8, 9, 2**63 + 11


def skeleton(vertices: Any, edges: Any, segment: int) -> Skeleton:
    count = len(vertices)
    found = Skeleton(np.array(vertices, np.float32), np.array(edges, np.uint32).reshape(-1, 2), segid=segment)
    found.radius = np.arange(count, dtype=np.float32) * 10 + 5
    found.vertex_types = (np.arange(count) == count - 1).astype(np.uint8)  # the last is a cell body
    found.extra_attributes = [RADIUS, TYPE]
    return found


def skeletons() -> list[Skeleton]:
    rng = np.random.default_rng(1)
    points = np.cumsum(rng.normal(size=(60, 3)) * 300, axis=0) + 50_000
    forest = [(rng.integers(i), i) for i in range(1, 40)] + [(rng.integers(40, i), i) for i in range(41, 60)]
    ring = np.array([[0, 0, 0], [100, 0, 0], [100, 100, 0], [0, 100, 0], [0, 0, 50]])
    return [
        skeleton(points, forest, FOREST),
        skeleton(ring, [(0, 1), (1, 2), (2, 3), (3, 0), (0, 4)], RING),
        skeleton(np.zeros((0, 3)), [], EMPTY),
        skeleton([[1e6, 2e6, 3e6], [1e6, 2e6, 3e6 + 64]], [(0, 1)], BIG),
    ]


@pytest.fixture(params=["sharded", "unsharded"])
def layer(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    store = Store((tmp_path / "skeletons").as_uri())
    info: dict[str, Any] = {
        "@type": "neuroglancer_skeletons", "transform": [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0],
        "vertex_attributes": [RADIUS, TYPE],
    }  # fmt: skip
    encoded = {s.id: bytes(s.to_precomputed()) for s in skeletons()}
    if request.param == "sharded":
        info["sharding"] = sharding_of(np.array([FOREST, RING, EMPTY], np.uint64), 500) | {"shard_bits": 0}
        write_shard(store, info["sharding"], {label: (data, b"") for label, data in encoded.items()})
    else:
        for label, data in encoded.items():
            store.put(str(label), data)
    store.put_json("info", info)
    return store.uri


def test_skeletons_are_forests_as_long_as_the_source(layer: str, tmp_path: Path) -> None:
    done = export_layer(layer, (tmp_path / "out").as_uri(), "swc")
    assert (done.written, done.missing, done.failed) == (3, [EMPTY], {})
    for source in skeletons():
        if source.id in (EMPTY, RING):
            continue
        text = (tmp_path / "out" / f"{source.id}.swc").read_text()
        assert f"# segment {source.id}\n# units micrometres" in text
        rows = [line.split() for line in text.splitlines() if not line.startswith("#")]
        seen = {-1}
        for row in rows:
            assert int(row[6]) in seen, "a parent comes before its children"
            seen.add(int(row[0]))
        assert [row[0] for row in rows] == [str(i + 1) for i in range(len(source.vertices))]
        theirs = Skeleton.from_swc(text)
        assert theirs.cable_length() * 1000 == pytest.approx(source.cable_length(), rel=1e-3)  # it keeps float32
        assert len(theirs.components()) == len(source.components())
        assert sum(row[6] == "-1" for row in rows) == len(source.components()), "a tree for each part"
        order = np.lexsort(source.vertices.T)
        other = np.lexsort(theirs.vertices.T)
        np.testing.assert_allclose(theirs.vertices[other] * 1000, source.vertices[order], rtol=1e-6)
        np.testing.assert_allclose(theirs.radii[other] * 1000, source.radius[order], rtol=1e-4)
        np.testing.assert_array_equal(theirs.vertex_types[other], source.vertex_types[order])
        assert rows[0][1] == "1", "the tree of a cell body begins there"
        ours = parse_swc(text.encode(), 1000.0)
        length = np.linalg.norm(ours.vertices_nm[ours.edges[:, 0]] - ours.vertices_nm[ours.edges[:, 1]], axis=1).sum()
        assert length == pytest.approx(float(source.cable_length()), rel=1e-5)


def test_loops_are_opened_and_told(layer: str, tmp_path: Path) -> None:
    done = export_layer(layer, tmp_path.as_uri(), "swc", ids=[RING], units="nm")
    assert done.loops == {RING: (1, 100.0)}
    text = (tmp_path / f"{RING}.swc").read_text()
    assert "# loops opened 1, edges of 100.0 nm left out\n" in text
    opened = Skeleton.from_swc(text)
    assert (len(opened.vertices), len(opened.edges)) == (5, 4)
    assert opened.cable_length() == pytest.approx(350)


def test_the_command(layer: str, tmp_path: Path) -> None:
    def hpn(*arguments: object) -> Any:
        return CliRunner().invoke(main, ["export", *map(str, arguments)])

    out = tmp_path / "out"
    listed = tmp_path / "ids.txt"
    listed.write_text(f"# the ones with a body\n{FOREST}, {RING}\n\n{BIG}\n")
    result = hpn(layer, out, "--format", "swc", "--ids-file", listed)
    assert (result.exit_code, sorted(p.name for p in out.glob("*.swc"))) == (
        0, sorted(f"{s}.swc" for s in (FOREST, RING, BIG)),
    )  # fmt: skip
    assert "3 swc files" in result.stdout
    assert f"1 edges (100 nm) left out in 1 skeletons: {RING}" in result.stderr
    everything = hpn(layer, out, "--format", "swc", "--all", "--json")
    answer = json.loads(everything.stdout)
    assert (everything.exit_code, answer["written"], answer["unchanged"], answer["missing"]) == (0, 0, 3, [EMPTY])
    missing = hpn(layer, out, "--format", "swc", "--ids", f"{FOREST},12345,{EMPTY}")
    assert (missing.exit_code, "no skeleton, 2 segments: 9, 12345" in missing.stderr) == (1, True)
    (tmp_path / "file").write_text("")
    for arguments, what in (
        (["--format", "swc"], "say which segments: one of --ids, --ids-file, --largest and --all"),
        (["--format", "swc", "--ids", "7,eight"], "'eight' is not the id of a segment"),
        (["--format", "swc", "--ids", str(2**64)], "is not the id of a segment"),
        (["--format", "swc", "--largest", "2"], "there is no table of sizes"),
        (["--format", "swc", "--all", "--lod", "1"], "--lod goes with meshes"),
        (["--format", "obj", "--all"], "a skeleton_layer, not a layer of meshes"),
        (["--format", "stl", "--all"], "'stl' is not one of"),
    ):
        result = hpn(layer, tmp_path / "none", *arguments)
        assert (result.exit_code, what in result.stderr) == (2, True), result.stderr
    assert not (tmp_path / "none").exists()
    unwritable = hpn(layer, tmp_path / "file" / "below", "--format", "swc", "--all")
    assert unwritable.exit_code != 0
    assert unwritable.stderr.startswith("hpn: store")
