"""Montage against a benchmark with known truth (../shared/bench/serial_sections) through the stage itself.

usage: python benchmarks/montage.py [--bench FOLDER] [--seeds 0 1 2] [--sections 6] [--set NAME=VALUE …]

For each seed the benchmark is made (unless it is there), montaged by one rank, and scored by the
benchmark's own scorer; the blank section is left out of the score, as there. Printed as JSON: seam
(distance of the same tissue in two tiles) and global residual after the best affine map per
section, median and 95th percentile in px, and CPU seconds per section of matching + solving +
rendering + writing.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import h5py
import numpy as np

from happyneurons.imaging.transforms import MontageTransforms
from happyneurons.store.artifacts import Artifact, load_artifact
from happyneurons.store.documents import Store
from happyneurons.worker.local import run_stage

SHARED = Path(__file__).resolve().parents[2] / "shared"
BENCH = SHARED / "bench/serial_sections"
TISSUE = SHARED / "data/fib25/validation_em_z000-064.h5"


def generated(folder: Path, seed: int, sections: int, zstep: int = 3, mirrored: int = 1) -> Path:
    """The benchmark in that folder, made unless it is there. zstep: planes of 10 nm a section; mirrored: so many times
    as wide and high, of tissue that is mirrored again and again."""
    if not (folder / "truth.npz").exists():
        values = {"out": folder, "n": sections, "zstep": zstep, "seed": seed}
        if mirrored > 1:
            folder.mkdir(parents=True, exist_ok=True)
            values["em"] = _mirrored(folder / "em.h5", sections * zstep, mirrored)
        command = [sys.executable, str(BENCH / "generate.py"), *(f"--{name}={value}" for name, value in values.items())]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder


def _mirrored(path: Path, planes: int, times: int) -> Path:
    with h5py.File(TISSUE) as file:
        em = file["em"][:planes]
    height, width = em.shape[1:]
    pad = ((0, 0), (0, (times - 1) * height), (0, (times - 1) * width))
    with h5py.File(path, "w") as file:
        file["em"] = np.pad(em, pad, "symmetric")
    return path


def tile_set(bench: Path, store: Store, name: str) -> Artifact:
    """The benchmark's tiles as a published tile_set."""
    sections: dict[int, list[dict[str, Any]]] = {}
    for line in (bench / "tiles.txt").read_text().splitlines():
        path, x, y, z = line.split("\t")
        row, col = int(Path(path).stem[1]), int(Path(path).stem[2])
        sections.setdefault(int(z), []).append(
            {"uri": Path(path).resolve().as_uri(), "row": row, "col": col, "x_px": float(x), "y_px": float(y),
             "width": 0, "height": 0, "status": "ok", "problem": ""}
        )  # fmt: skip
    side = int(np.load(bench / "truth.npz")["tile"])
    for z, tiles in sections.items():
        for tile in tiles:
            tile["width"] = tile["height"] = side
        store.put_json(f"artifacts/{name}/tiles/sections/{z:06d}.json", {"z": z, "status": "ok", "tiles": tiles})
    return publish(store, name, {"z_range": [0, len(sections)], "pixel_size_nm": 2.5})


def publish(store: Store, key: str, properties: dict[str, Any]) -> Artifact:
    """A manifest as if a job named `key` had made the tile set."""
    artifact = Artifact(
        kind="tile_set", uri=f"{store.uri}/jobs/{key}/manifest.json#tiles",
        data_uri=f"{store.uri}/artifacts/{key}/tiles", digest=key,
        voxel_size_nm_xyz=(2.5, 2.5, 30.0), properties=properties,
    )  # fmt: skip
    manifest = {"job_key": key, "stage": "ingest", "stage_version": "0", "params": {}, "inputs": {},
                "outputs": {"tiles": artifact.model_dump()}, "provenance": {}}  # fmt: skip
    store.put_json(f"jobs/{key}/manifest.json", manifest)
    return load_artifact(artifact.uri)


def load(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench", type=Path, default=Path(tempfile.gettempdir()) / "montage_bench")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sections", type=int, default=6)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="stage parameter, JSON value")
    arguments = parser.parse_args()
    params = {k: json.loads(v) for k, v in (item.split("=", 1) for item in arguments.set)}
    score = load(BENCH / "score.py")
    for seed in arguments.seeds:
        bench = generated(arguments.bench / f"s{seed}", seed, arguments.sections)
        with tempfile.TemporaryDirectory() as folder:
            store = Store(folder)
            tiles = tile_set(bench, store, f"bench{seed}")
            before = cpu_s()
            manifest = run_stage(store, "montage", inputs={"tiles": tiles.uri}, params=params)
            used = cpu_s() - before
            transforms = MontageTransforms(load_artifact(manifest.outputs["stack"].uri))
            truth = score.Truth(str(bench))
            result = score.eval_montage(
                truth, lambda z, t, xy, tr=transforms, g=truth.G: tr.map(z, divmod(t, g), np.asarray(xy))
            )
            print(
                json.dumps(
                    {
                        "seed": seed, "seam": result["seam"], "global": result["glob"], "per_section": result["per"],
                        "failed": result["failed_sections"], "cpu_s_per_section": round(used / truth.n, 3),
                        "metrics": manifest.metrics,
                    },
                    default=str,
                )
            )  # fmt: skip


if __name__ == "__main__":
    main()
