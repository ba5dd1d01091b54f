"""A whole volume in overlapping subvolumes, joined: FIB-25 against its ground truth, and against one piece.

usage: python benchmarks/ffn_subvolumes.py [--ranks 2] [--whole] [--agglomerate 1] [--no-fill] [--store FOLDER] …

Segments ../shared/data/fib25/em.h5 (250³) with Google's published network in 27 subvolumes of 105³ that overlap by 32,
in fast mode with what docs/segment.md advises for overlapping subvolumes; `reconcile` with its defaults;
`--agglomerate N` asks the network about N partners of each segment; `--whole` segments the volume in one piece, to
compare with. Scores are those of ../shared/bench/ffn/score.py, on the half with a ground truth (z < 128). What a
store that is given holds already is not computed again, and has no time.

Published by Google for this network on the whole volume: raw VOI .613 + .263, adapted Rand error .0557.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from ffn import CHECKPOINT, EM, score

from happyneurons.store.artifacts import load_artifact
from happyneurons.store.volumes import open_volume

TRUTH_Z = 128
INPUTS = {"image": f"h5://{EM}?em", "model": f"ckpt://{CHECKPOINT}"}
FAST = {"fast_segment_threshold": 0.75, "revisit_open_fraction": 0.2}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2, help="MPI ranks, a thread each")
    parser.add_argument("--size", type=int, default=105, help="edge of a subvolume, voxels")
    parser.add_argument("--overlap", type=int, default=32, help="overlap, voxels")
    parser.add_argument("--segment-params", type=json.loads, default={}, help="JSON, beside and instead of those above")
    parser.add_argument("--no-fill", action="store_true", help="voxels only as their own subvolume labelled them")
    parser.add_argument("--agglomerate", type=int, default=0, help="partners asked about for each segment; 0: none")
    parser.add_argument("--whole", action="store_true", help="also in one piece (on one rank: a single task)")
    parser.add_argument("--store", help="folder to work in; default: a temporary one")
    parser.add_argument("--out", type=Path, help="write the report here, as JSON")
    options = parser.parse_args()
    report: dict[str, Any] = {"ranks": options.ranks}
    with tempfile.TemporaryDirectory() as folder:
        store = options.store or folder

        def run(name: str, stage: str, inputs: dict[str, str], **params: Any) -> dict[str, str]:
            report[name] = _run(store, stage, options.ranks, inputs, params)
            outputs: dict[str, str] = report[name].pop("outputs")
            if "segmentation" in outputs:
                report[name]["scores"] = _score(outputs["segmentation"])
            print(json.dumps({name: report[name]}), flush=True)
            return outputs

        box = {"subvolume_size_xyz": [options.size] * 3, "overlap_xyz": [options.overlap] * 3}
        subvolumes = run("segment", "segment", INPUTS, **FAST | options.segment_params, **box)["subvolumes"]
        joined = run("reconcile", "reconcile", {"subvolumes": subvolumes}, fill=not options.no_fill)["segmentation"]
        if options.agglomerate:
            run("agglomerate", "agglomerate", {**INPUTS, "segmentation": joined}, max_partners=options.agglomerate)
        if options.whole:
            box = {"subvolume_size_xyz": [250] * 3, "overlap_xyz": [options.overlap] * 3}
            piece = run("whole_segment", "segment", INPUTS, **FAST | options.segment_params, **box)["subvolumes"]
            run("whole", "reconcile", {"subvolumes": piece})
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")


def _run(store: str, stage: str, ranks: int, inputs: dict[str, str], params: dict[str, Any]) -> dict[str, Any]:
    """A stage as a user runs it; its figures and the URIs of its outputs."""
    command = [sys.executable, "-m", "happyneurons.cli.main", "stage", "run", stage, "--store", store, "--json"]
    command += ["-n", str(ranks)]
    for name, uri in inputs.items():
        command += ["--input", f"{name}={uri}"]
    for name, value in params.items():
        command += ["--param", f"{name}={json.dumps(value)}"]
    begun = time.perf_counter()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment)
    found = json.loads(done.stdout)
    seconds = {} if found["reused"] else {"seconds": round(time.perf_counter() - begun, 1)}
    return {**seconds, "metrics": found["metrics"], "outputs": found["outputs"]}


def _score(uri: str) -> dict[str, Any]:
    volume = open_volume(load_artifact(uri).data_uri)
    with tempfile.NamedTemporaryFile(suffix=".npz") as file:
        np.savez(file, segmentation=volume.read((0, 0, 0), (TRUTH_Z, *volume.stop_zyx[1:])).astype(np.uint32))
        file.flush()
        return score(Path(file.name))


if __name__ == "__main__":
    main()
