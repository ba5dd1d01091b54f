"""A sweep on Balsam, with a table as its result: Table 1 of the paper, small."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.online import write_sites
from integration_tests.hpc.rig import Rig

from happyneurons.acquisition.phantom import make_phantom, write_phantom
from happyneurons.acquisition.simulate import simulate_acquisition

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "sweep.yaml"
HPN = [sys.executable, "-m", "happyneurons.cli.main"]


def test_a_sweep_runs_on_several_nodes_and_ends_in_a_table(rig: Rig, tmp_path: Path) -> None:
    image, labels = write_phantom(make_phantom((8, 240, 360), seed=5), (tmp_path / "phantom").as_uri())
    simulate_acquisition(
        image, tmp_path / "tiles", labels_uri=labels, tiles=(2, 1), overlap_px=28, sections=(0, 4), seed=5
    )
    sites, store = write_sites(rig, tmp_path / "sites.yaml", rig.nodes), str(rig.stores / "sweep")
    command = [*HPN, "run", str(EXAMPLE), "--set", f"source={tmp_path / 'tiles'}", "--store", store]
    done = subprocess.run([*command, "--sites", str(sites), "--json"], capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{rig.logs()}"
    run = json.loads(done.stdout)["id"]
    printed = subprocess.run(
        [*HPN, "table", run, "--store", store, "--json"], capture_output=True, text=True, check=True
    )
    (table,) = json.loads(printed.stdout)
    assert table["job"] == "montage"
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]
    assert {(row["sets"], row["node_spacing_px"]) for row in rows} == {
        (name, spacing) for name in ("small", "standard", "large") for spacing in (120, 240)
    }
    assert all(row["state"] == "succeeded" and row["seconds"] > 0 and row["core_hours"] > 0 for row in rows)
    assert all(row["sections_ok"] + row["sections_flagged"] + row["sections_failed"] == 4 for row in rows)
