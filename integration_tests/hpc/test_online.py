"""Sections at a microscope's pace: the experiment of benchmarks/online.py, short; only what speed does not decide."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.online import experiment
from integration_tests.hpc.rig import Rig

SECTIONS = 12


def test_the_pool_comes_and_goes_with_the_sections(rig: Rig, tmp_path: Path) -> None:
    options = argparse.Namespace(sections=SECTIONS, pace_s=2.0, batch=3, nodes=rig.nodes, size=(360, 240, SECTIONS))
    found = experiment(rig, tmp_path, options)
    samples = found["samples"]
    assert samples[0]["nodes_running"] == 0, "no node is held before there is work"
    assert 1 <= found["nodes"]["max"] <= rig.nodes
    assert found["nodes"]["end"] == 0, "given back by itself"
    assert samples[-1]["done"] == samples[-1]["reported"] == SECTIONS
    assert samples[-1]["lag_s"] == 0
    assert found["jobs"] == 2 * (SECTIONS // 3) + 2
    assert found["retries"] == 0
