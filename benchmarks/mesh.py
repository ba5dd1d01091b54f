"""Meshes and skeletons of FIB-25's ground truth, beside igneous' own task queue.

usage: PYTHONPATH=services nice python benchmarks/mesh.py [--data ../shared/data] [--rounds 3] [--only mesh]

The labels (z < 128, 525 bodies in the whole, 250 x 250 x 128 voxels of 10 nm) are meshed and skeletonized
with the same parameters twice: by the stages under 2 MPI ranks that work (`hpn stage run -n 2`), and by
igneous' task functions with LocalTaskQueue(parallel=2). Both make sharded multi-resolution Draco meshes
and sharded skeletons, with a spatial index, of blocks of 128 voxels. A round is ours, then theirs; each is
a process of its own from its start to its end. Prints a line of JSON a case: seconds of the wall clock and
of the CPU (all processes), and how many times faster ours was (median, least, most). What both wrote is
opened by CloudVolume and compared: objects, triangles, length of the skeletons, answers of the index.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from happyneurons.store.documents import Store
from happyneurons.store.layers import open_meshes, open_skeletons
from happyneurons.store.skeletons import SkeletonLayer
from happyneurons.store.volumes import create_volume

BLOCK, LEVELS, CHUNK_VX = 128, 3, 64
TEASAR = {
    "scale": 1.5, "const": 300, "pdrf_scale": 100_000, "pdrf_exponent": 4, "soma_detection_threshold": 1100,
    "soma_acceptance_threshold": 3500, "soma_invalidation_const": 300, "soma_invalidation_scale": 2,
}  # fmt: skip
PARAMS: dict[str, dict[str, Any]] = {
    "mesh": {
        "block_size_xyz": [BLOCK] * 3, "max_error_nm": 40, "reduction": 100, "dust_threshold_voxels": 0,
        "levels": LEVELS, "min_chunk_nm": CHUNK_VX * 10, "sharded": True,
    },
    "skeletonize": {
        "block_size_xyz": [BLOCK] * 3, "dust_threshold_voxels": 0, "min_length_nm": 200, "tick_length_nm": 300,
        "sharded": True,
    },
}  # fmt: skip
IGNEOUS = f"""
import sys
from igneous import task_creation as tc
from taskqueue import LocalTaskQueue

def work(tasks):
    queue = LocalTaskQueue(parallel=2, progress=False)
    queue.insert(tasks)
    queue.execute()

if __name__ == "__main__":
    path, stage = sys.argv[1:]
    shape = ({BLOCK},) * 3
    if stage == "mesh":
        work(tc.create_meshing_tasks(
            path, 0, shape=shape, simplification=True, max_simplification_error=40, mesh_dir="mesh", sharded=True,
            spatial_index=True, fill_missing=True))
        work(tc.create_sharded_multires_mesh_tasks(
            path, num_lod={LEVELS - 1}, draco_compression_level=7, vertex_quantization_bits=16, mesh_dir="mesh",
            min_chunk_size=({CHUNK_VX},) * 3, max_labels_per_shard=500, progress=False))
    else:
        work(tc.create_skeletonizing_tasks(
            path, 0, shape=shape, teasar_params={TEASAR!r}, dust_threshold=0, sharded=True, spatial_index=True,
            fill_missing=True))
        work(tc.create_sharded_skeleton_merge_tasks(
            path, dust_threshold=200, tick_threshold=300, max_labels_per_shard=500))
"""


def timed(command: list[str]) -> tuple[float, float, str]:
    """(seconds by the clock, seconds of CPU of all its processes, output)."""
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    seconds, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


def ours(stage: str, volume: Path, folder: Path) -> tuple[float, float, str]:
    command = [sys.executable, "-m", "happyneurons.cli.main", "stage", "run", stage, "--json", "-n", "2"]
    command += ["--input", f"segmentation={volume.as_uri()}", "--store", folder.as_uri()]
    for name, value in PARAMS[stage].items():
        command += ["--param", f"{name}={json.dumps(value)}"]
    seconds, cpu, output = timed(command)
    name = "mesh" if stage == "mesh" else "skeletons"
    return seconds, cpu, (folder / "artifacts" / json.loads(output)["key"] / name).as_uri()


def theirs(stage: str, volume: Path, folder: Path) -> tuple[float, float, str]:
    script, copy = folder / "igneous_tasks.py", folder / "volume"
    folder.mkdir()
    shutil.copytree(volume, copy)  # it writes beside what it reads
    script.write_text(IGNEOUS)
    seconds, cpu, _ = timed([sys.executable, str(script), copy.as_uri(), stage])
    name = str(json.loads((copy / "info").read_text())["mesh" if stage == "mesh" else "skeletons"])
    return seconds, cpu, (copy / name).as_uri()


def content(stage: str, uri: str, labels: np.ndarray) -> dict[str, Any]:
    """What a layer holds, by CloudVolume's reader."""
    ids = [int(v) for v in np.unique(labels) if v]
    size = sum(f.stat().st_size for f in Path(uri.removeprefix("file://")).glob("*.shard"))
    found: dict[str, Any] = {"megabytes": round(size / 1e6, 2)}
    if stage == "mesh":
        reader = open_meshes(uri)
        meshes = [m for i in ids if (m := reader.get(i, allow_missing=True).get(i)) is not None]
        largest = ids[int(np.argmax([(labels == i).sum() for i in ids]))]
        lods = len(reader.get_manifest(largest).fragment_positions)
        found |= {
            "objects": len(meshes), "triangles": sum(len(m.faces) for m in meshes),
            "triangles_of_the_largest_by_level": [len(reader.get(largest, lod=i)[largest].faces) for i in range(lods)],
        }  # fmt: skip
    else:
        names = SkeletonLayer(Store(uri)).names()
        # igneous stores objects of which nothing is left as empty skeletons.
        skeletons = [s for name in names if len((s := open_skeletons(uri).get(int(name))).vertices)]
        found |= {
            "objects": len(skeletons),
            "path_um": round(float(sum(s.cable_length() for s in skeletons)) / 1000, 1),
        }
    return found


def measure(stage: str, volume: Path, labels: np.ndarray, rounds: int, folder: Path) -> dict[str, Any]:
    times: dict[str, list[tuple[float, float]]] = {"ours": [], "igneous": []}
    contents: dict[str, Any] = {}
    for number in range(rounds):
        for name, make in (("ours", ours), ("igneous", theirs)):
            place = folder / f"{stage}-{name}-{number}"
            seconds, cpu, uri = make(stage, volume, place)
            times[name].append((seconds, cpu))
            if number == 0:
                contents[name] = content(stage, uri, labels)
            shutil.rmtree(place)
    result: dict[str, Any] = {"case": stage, "contents": contents}
    for i, clock in enumerate(("wall_s", "cpu_s")):
        mine, other = ([t[i] for t in times[name]] for name in ("ours", "igneous"))
        ratios = [b / a for a, b in zip(mine, other, strict=True)]
        result[clock] = {"ours": round(statistics.median(mine), 1), "igneous": round(statistics.median(other), 1)}
        result[f"times_faster_{clock}"] = [round(r, 2) for r in (statistics.median(ratios), min(ratios), max(ratios))]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=sorted(PARAMS))
    options = parser.parse_args()
    with h5py.File(options.data / "fib25" / "labels_z000-128.h5") as file:
        labels = file["labels"][()]
    with tempfile.TemporaryDirectory(prefix="hpn-mesh-") as temporary:
        volume = Path(temporary) / "labels"
        create_volume(
            volume.as_uri(), start_zyx=(0, 0, 0), stop_zyx=labels.shape, voxel_size_nm_xyz=(10, 10, 10),
            dtype="uint64", layer_type="segmentation",
        ).write((0, 0, 0), labels.astype(np.uint64))  # fmt: skip
        info = Store(volume.as_uri()).get_json("info")
        (volume / "provenance").write_text(json.dumps({"sources": [], "owners": [], "processing": []}))
        assert "mesh" not in info
        for stage in PARAMS:
            if options.only in (None, stage):
                print(json.dumps(measure(stage, volume, labels, options.rounds, Path(temporary))), flush=True)


if __name__ == "__main__":
    main()
