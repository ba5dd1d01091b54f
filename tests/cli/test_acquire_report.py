"""Feeding an open run by hand: `hpn acquire report`, `hpn acquire end`, and what `hpn status` says meanwhile."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from happyneurons.orchestrator.server import OrchestratorServer
from happyneurons.orchestrator.sites import SiteConfig
from happyneurons.store.documents import Store

from ..worker.waiting import wait_for

OPEN = """
name: open
acquisition: {batch: 2, wait_s: 3600}
jobs:
  first: {stage: gather, each: batch, params: {source: "${batch}"}}
  all: {stage: gather, inputs: {tables: first.table}}
"""


@pytest.fixture
def address(own_store: Path) -> Iterator[str]:
    with OrchestratorServer(Store(str(own_store)), sites={"local": SiteConfig(executor="local", cores=2)}) as server:
        yield server.address


def section(folder: Path, z: int, file: str = "a.tif") -> Path:
    tile = {"uri": f"/scope/{z}/{file}", "x_nm": 0.0, "y_nm": 0.0, "width_px": 9, "height_px": 9}
    path = folder / f"{z}.json"
    path.write_text(json.dumps({"z": z, "pixel_size_nm": 8, "thickness_nm": 40, "tiles": [tile]}))
    return path


def test_a_run_is_fed_by_hand(hpn, pipeline, address, tmp_path):
    at = ("--orchestrator", address)
    run_id = hpn("run", pipeline(OPEN), "--no-watch", *at).stdout.strip()
    paths = [section(tmp_path, z) for z in (1, 2, 5)]
    reported = hpn("acquire", "report", run_id, *paths, *at)
    assert reported.stdout == "".join(f"{path}: reported\n" for path in paths)
    assert hpn("acquire", "report", run_id, paths[0], *at).stdout == f"{paths[0]}: was known\n"
    done = (
        "3 sections reported; 2 through the jobs for each batch; 1 waiting for a batch; 2 not there between them (3-4)"
    )
    wait_for(lambda: done in hpn("status", run_id, *at).stdout, "the first batch")
    assert "; more may come" in hpn("status", run_id, *at).stdout
    again = hpn("acquire", "report", run_id, section(tmp_path, 1, "b.tif"), *at)
    assert again.exit_code == 2
    assert "if it was imaged again, say so" in again.stderr
    again = hpn("acquire", "report", run_id, section(tmp_path, 1, "b.tif"), "--imaged-again", *at)
    assert again.stdout.endswith("1.json: reported, version 2\n")
    assert hpn("acquire", "end", run_id, *at).stdout == "ended with 3 sections\n"
    watched = hpn("watch", run_id, *at)
    assert watched.exit_code == 0
    assert "batch 1: sections 1-2" in watched.stderr
    assert "the acquisition has ended: 3 sections" in watched.stderr
    (line,) = [line for line in hpn("status", run_id, *at).stdout.splitlines() if line.startswith("first")]
    assert line.split() == ["first[…]", "succeeded", "local", "2", "batches"]
    document = json.loads(hpn("status", run_id, "--json", *at).stdout)
    assert document["acquisition"]["sections_done"] == 3
    assert document["acquisition"]["ended"] is True


def test_what_is_no_section_is_one_line_and_exit_2(hpn, pipeline, address, tmp_path):
    run_id = hpn("run", pipeline(OPEN), "--no-watch", "--orchestrator", address).stdout.strip()
    for name, text, message in [
        ("nothing.json", None, "No such file"),
        ("text.json", "hello", "not JSON"),
        ("list.json", "[1]", "not a section"),
        ("other.json", '{"zed": 3}', "not a section"),
        ("empty.json", '{"z": 3, "pixel_size_nm": 4}', "section.tiles: at least one tile"),
    ]:
        if text is not None:
            (tmp_path / name).write_text(text)
        result = hpn("acquire", "report", run_id, tmp_path / name, "--orchestrator", address)
        assert result.exit_code == 2, (name, result.output)
        assert message in result.stderr
        assert result.stderr.count("\n") == 1
    assert "needs a running orchestrator" in hpn("acquire", "end", run_id).stderr
