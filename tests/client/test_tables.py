"""Sweeps as tables, from a real run."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import happyneurons as hpn
from happyneurons.client.tables import sweep_tables
from happyneurons.orchestrator.convert import run_message
from happyneurons.orchestrator.pipeline import parse_pipeline
from happyneurons.orchestrator.server import OrchestratorServer
from happyneurons.orchestrator.state import RunStatus
from happyneurons.store.documents import Store

SWEEP = """
jobs:
  alone: {stage: sandbox, params: {tasks: 1}}
  first: {stage: sandbox, params: {tasks: 1}, sweep: {tasks: [2, 3]}}
  second:
    stage: sandbox
    needs: [first, alone]
    params: {behaviour: {"0": ""}}
    sweep: {tasks: [4, 5]}
"""


def test_a_row_for_each_combination_of_values(tmp_path: Path) -> None:
    with OrchestratorServer(Store(str(tmp_path / "store"))) as server, hpn.connect(server.address) as client:
        tables = client.submit(SWEEP).wait().sweep_tables()
    found = {t.job: t for t in tables}
    assert list(found) == ["first", "second"], "a job that does not vary has no table"
    first = found["first"]
    assert first.columns == ("tasks", "state", "seconds", "core_hours", "sum")
    assert [(row[0], row[1], row[-1]) for row in first.rows] == [(2, "succeeded", 1.0), (3, "succeeded", 5.0)]
    assert all(row[2] > 0 and row[3] == round(row[2] / 3600, 6) for row in first.rows)
    rows = list(csv.DictReader(io.StringIO(found["second"].to_csv())))
    assert {(row["tasks"], row["sum"]) for row in rows} == {("4", "14.0"), ("5", "30.0")}


def test_what_follows_a_sweep_shows_the_values_it_came_from(tmp_path: Path) -> None:
    text = """
jobs:
  make: {stage: ingest, params: {source: SOURCE}, sweep: {blank_std: [1.5, 2.5]}}
  join: {stage: montage, inputs: {tiles: make.tiles}, sweep: {sets: [[{name: fine, block_px: 32}]]}}
"""
    spec = {"time": 0.0, "yaml": text, "parameters": {}, "source_name": "", "base_uri": ""}
    status = RunStatus.fresh("run", parse_pipeline(text.replace("SOURCE", str(tmp_path))), spec)
    (make, join) = sweep_tables(run_message(Store(str(tmp_path)), status, {}))
    assert [row[0] for row in make.rows] == [1.5, 2.5]
    assert join.columns[0] == "make.blank_std"
    assert [row[0] for row in join.rows] == [1.5, 2.5]
    assert [row[2] for row in join.rows] == [None, None], "nothing has run"
