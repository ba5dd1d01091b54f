"""Does one small machine keep up with the paper's microscope? Sections of its size, at its pace, montaged as they come.

usage: python benchmarks/keep_pace.py [--sections 30] [--pace-s 20] [--scale 1] [--batch 1] [--store FOLDER]

Sections of two 10833 × 14000 tiles (real FIB-SEM, enlarged; see microscope_section.py) appear in a folder, one every
20 s. `hpn acquire watch` reads, checks and reports them, an orchestrator makes a job of each `--batch` of them (ingest,
then montage, one thread a job), and this machine runs as many jobs at a time as `--cores`. `--scale 0.5` halves the
tiles' sides and quarters the pace, so that pixels a second stay the same and everything else has less time.

Prints JSON: the lag behind the microscope (age of the oldest section still in work), sampled each second. Its median
and maximum are those of the steady part, from a third of the acquisition to its end; `lag_growth_s` is by how much it
grew from that part's first half to its second. Needs disk for twice the pixels: 18 GB for 30 sections at full scale.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean, median
from typing import Any

from microscope_section import OVERLAP, photograph

from happyneurons.acquisition import metadata
from happyneurons.client import Client

HPN = [sys.executable, "-m", "happyneurons.cli.main"]
WIDTH, HEIGHT, PACE_S = 10833, 14000, 20.0
PIXEL_NM, THICKNESS_NM = 4.0, 40.0
# Different sections: the microscope has as many as it likes, but making them takes longer than their pace.
DISTINCT = 3
PIPELINE = """
name: pace
acquisition: {{batch: {batch}, wait_s: {wait_s}}}
jobs:
  ingest:
    each: batch
    params: {{source: "${{batch}}", missing: mark}}
    resources: {{ranks: 1, threads_per_rank: 1}}
  montage:
    each: batch
    inputs: {{tiles: ingest.tiles}}
    resources: {{ranks: 1, threads_per_rank: 1}}
"""


def make_tiles(folder: Path, width: int, height: int) -> list[list[dict[str, Any]]]:
    """For each of the distinct sections, its tiles as a tile set would describe them."""
    folder.mkdir()
    return [photograph(folder, z, width, height)[0] for z in range(DISTINCT)]


def acquire(folder: Path, made: list[list[dict[str, Any]]], sections: int, pace_s: float, began: float) -> None:
    """Let sections appear, each when it is due."""
    for z in range(sections):
        time.sleep(max(0.0, began + z * pace_s - time.monotonic()))
        target = metadata.section_folder(folder, z)
        target.mkdir(parents=True)
        entries = []
        for tile in made[z % len(made)]:
            name = metadata.tile_file(tile["row"], tile["col"])
            shutil.copyfile(Path(tile["uri"].removeprefix("file://")), target / name)
            entries.append(
                metadata.TileEntry(
                    file=name, row=tile["row"], col=tile["col"], stage_x_nm=tile["x_px"] * PIXEL_NM,
                    stage_y_nm=tile["y_px"] * PIXEL_NM, width_px=tile["width"], height_px=tile["height"],
                )
            )  # fmt: skip
        now = datetime.now(UTC).isoformat(timespec="seconds")
        section = metadata.SectionDocument(z=z, acquired_at=now, pixel_size_nm=PIXEL_NM, tiles=tuple(entries))
        metadata.write_document(target / metadata.SECTION_FILE, section)


def experiment(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    width, height = round(WIDTH * options.scale), round(HEIGHT * options.scale)
    pace_s = options.pace_s * options.scale**2
    made = make_tiles(folder / "made", width, height)
    microscope = folder / "microscope"
    metadata.write_document(
        microscope / metadata.ACQUISITION_FILE,
        metadata.AcquisitionDocument(
            voxel_size_nm_xyz=(PIXEL_NM, PIXEL_NM, THICKNESS_NM), cols=2, rows=1, tile_width_px=width,
            tile_height_px=height, overlap_px=round(width * OVERLAP), z_range=(0, options.sections), pace_s=pace_s,
        ),
    )  # fmt: skip
    sites, port_file = folder / "sites.yaml", folder / "port"
    sites.write_text(f"local: {{executor: local, cores: {options.cores}, memory_gb: {options.memory_gb}}}\n")
    pipeline = folder / "pace.yaml"
    pipeline.write_text(PIPELINE.format(batch=options.batch, wait_s=10 * pace_s))
    started = [
        subprocess.Popen([
            *HPN, "serve", "orchestrator", "--store", str(folder / "store"), "--sites", str(sites),
            "--address", "127.0.0.1:0", "--port-file", str(port_file),
        ], stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
    ]  # fmt: skip
    try:
        while not port_file.exists():
            time.sleep(0.1)
        address = port_file.read_text().strip()
        with Client(address) as client:
            run = client.submit(pipeline, {})
            began = time.monotonic() + 2
            arguments = (microscope, made, options.sections, pace_s, began)
            microscope_thread = threading.Thread(target=acquire, args=arguments, daemon=True)
            microscope_thread.start()
            watch = [*HPN, "acquire", "watch", str(microscope), "--run", run.id, "--orchestrator", address]
            started.append(subprocess.Popen([*watch, "--until-complete"], stdout=subprocess.DEVNULL))
            samples: list[tuple[float, int, int, float]] = []
            while not run.refresh().final:
                now = run.proto.acquisition
                lag_s = now.lag.ToMilliseconds() / 1000
                samples.append((time.monotonic() - began, now.sections_reported, now.sections_done, lag_s))
                time.sleep(1.0)
            if run.state != "succeeded":
                raise SystemExit(f"run {run.id} {run.state}: {run.message}")
            finished_s = time.monotonic() - began
    finally:
        for process in started:
            process.terminate()
            process.wait(60)
    acquired_s = (options.sections - 1) * pace_s
    steady = [lag for at, _, _, lag in samples if acquired_s / 3 <= at <= acquired_s]
    half = len(steady) // 2
    return {
        "sections": options.sections,
        "tiles_px": [width, height],
        "pace_s": pace_s,
        "mb_per_s": round(2e-6 * width * height / pace_s, 1),
        "lag_s": {"median": round(median(steady), 1), "max": round(max(steady), 1)},
        "lag_growth_s": round(mean(steady[half:]) - mean(steady[:half]), 1),
        "acquired_after_s": round(acquired_s, 1),
        "finished_after_s": round(finished_s, 1),
        "samples": [[round(at, 1), reported, done, round(lag, 1)] for at, reported, done, lag in samples],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", type=int, default=30)
    parser.add_argument("--pace-s", type=float, default=PACE_S, help="seconds from one section to the next, at scale 1")
    parser.add_argument("--scale", type=float, default=1.0, help="of the tiles' sides; the pace goes with its square")
    parser.add_argument("--batch", type=int, default=1, help="sections of a job")
    parser.add_argument("--cores", type=int, default=2, help="that jobs may use together")
    parser.add_argument("--memory-gb", type=float, default=8, help="the same")
    parser.add_argument("--store", type=Path, help="an empty folder to work in; default: a temporary one")
    parser.add_argument("--out", type=Path, help="write the report here, with all samples")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.store) as scratch:
        report = experiment(Path(scratch), options)
    if options.out:
        options.out.write_text(json.dumps(report) + "\n")
    print(json.dumps({k: v for k, v in report.items() if k != "samples"}, indent=1))


if __name__ == "__main__":
    main()
