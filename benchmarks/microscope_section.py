"""One section of the paper's microscope, from TIFF tiles to the drawn section in the store: time and memory.

usage: python benchmarks/microscope_section.py [--width 10833] [--height 14000] [--threads 2] [--sections 1]

Two tiles side by side that overlap by 5 %, cut from real FIB-SEM (enlarged by 4 and mirrored to the size of a section),
with an error of the stage, a small rotation, brightness and noise of their own; `hpn stage run montage` on them in a
process of its own, start included. Prints JSON: wall and CPU seconds, MB of tiles a second and per CPU second, the
process's largest memory, metrics, and how far tissue at the seam lies apart (median, 95th percentile, by the truth).

The microscope of the paper (arXiv 2011.03204) makes such a section every 20 s; TrakEM2 took 440 s on 64 cores.
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

import cv2
import h5py
import numpy as np
import tifffile
from montage import SHARED, publish

from happyneurons.imaging.transforms import MontageTransforms
from happyneurons.store.artifacts import load_artifact
from happyneurons.store.documents import Store

OVERLAP, ENLARGED = 0.05, 4


def scene(width: int, height: int, z: int) -> np.ndarray:
    """(height, width) uint8 of tissue."""
    with h5py.File(SHARED / "data/fib25/validation_em_z000-064.h5") as file:
        plane = np.asarray(file["em"][z % len(file["em"])])
    large = cv2.resize(plane, None, fx=ENLARGED, fy=ENLARGED, interpolation=cv2.INTER_CUBIC)
    side = np.hstack([large, large[:, ::-1]])
    tissue = np.vstack([side, side[::-1]])
    return np.tile(tissue, (-(-height // tissue.shape[0]), -(-width // tissue.shape[1])))[:height, :width]


def photograph(folder: Path, z: int, width: int, height: int) -> tuple[list[dict[str, Any]], list[np.ndarray]]:
    """Tiles of a section as TIFF, their entries in a tile set, and their true maps (2, 3) tile px → scene px."""
    rng = np.random.default_rng(z)
    step = round(width * (1 - OVERLAP))
    tissue = scene(step + width + 200, height + 200, z)
    entries, maps = [], []
    for col in range(2):
        angle = np.deg2rad(rng.normal(0, 0.05))
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        middle = np.array([width, height]) / 2
        shift = middle - turn @ middle + [col * step + 100, 100] + rng.uniform(-12, 12, 2)
        true = np.column_stack([turn, shift])
        tile = np.empty((height, width), np.uint8)
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        for y in range(0, height, 2000):
            rows = min(2000, height - y)
            part = np.column_stack([turn, shift + turn @ [0, y]])
            # cv2 addresses at most 32767 px a side: the band's part of the scene is enough.
            low = max(0, int(part[1, 2]) - 40)
            part[1, 2] -= low
            band = cv2.warpAffine(tissue[low : low + rows + 120], part, (width, rows), flags=flags)
            noisy = (
                band.astype(np.float32) * rng.uniform(0.97, 1.03) + rng.standard_normal((rows, width), np.float32) * 6
            )
            tile[y : y + rows] = np.clip(noisy, 1, 255)
        path = folder / f"z{z:04d}_c{col}.tif"
        tifffile.imwrite(path, tile)
        entries.append(
            {"uri": path.as_uri(), "row": 0, "col": col, "x_px": float(col * step), "y_px": 0.0, "width": width,
             "height": height, "status": "ok", "problem": ""}
        )  # fmt: skip
        maps.append(true)
    return entries, maps


def seam_px(transforms: MontageTransforms, z: int, maps: list[np.ndarray], width: int, height: int) -> list[float]:
    """Median and 95th percentile of the distance of the same tissue in both tiles, by their true maps."""
    x, y = np.meshgrid(np.arange(width * (1 - OVERLAP) + 40, width - 40, 30), np.arange(60, height - 60, 60))
    left = np.stack([x, y], axis=-1).reshape(-1, 2)
    tissue = left @ maps[0][:, :2].T + maps[0][:, 2]
    right = (tissue - maps[1][:, 2]) @ np.linalg.inv(maps[1][:, :2]).T
    a, b = transforms.map(z, (0, 0), left), transforms.map(z, (0, 1), right)
    assert a is not None
    assert b is not None
    apart = np.linalg.norm(a - b, axis=1)
    return [round(float(np.median(apart)), 3), round(float(np.percentile(apart, 95)), 3)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=10833, help="of a tile, px")
    parser.add_argument("--height", type=int, default=14000, help="of a tile, px")
    parser.add_argument("--sections", type=int, default=1)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2, help="of a rank")
    parser.add_argument("--param", action="append", default=[], metavar="KEY=VALUE", help="of the montage")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        store, truth = Store(f"{scratch}/store"), []
        tiles = Path(scratch) / "tiles"
        tiles.mkdir()
        for z in range(options.sections):
            entries, maps = photograph(tiles, z, options.width, options.height)
            store.put_json(f"artifacts/made/tiles/sections/{z:06d}.json", {"z": z, "status": "ok", "tiles": entries})
            truth.append(maps)
        artifact = publish(store, "made", {"z_range": [0, options.sections], "pixel_size_nm": 4.0})
        command = [
            sys.executable, "-m", "happyneurons.cli.main", "stage", "run", "montage",
            "--input", f"tiles={artifact.uri}",
            "--store", store.uri, "-n", str(options.ranks), "--threads", str(options.threads), "--json",
            *(part for p in options.param for part in ("--param", p)),
        ]  # fmt: skip
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=sys.stderr, text=True)
        assert process.stdout is not None
        answer = json.loads(process.stdout.read())
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - began
        if status:
            raise SystemExit("the montage failed")
        transforms = MontageTransforms(load_artifact(answer["outputs"]["stack"]))
        megabytes = 2e-6 * options.width * options.height * options.sections
        cpu = usage.ru_utime + usage.ru_stime
        report = {
            "tiles_mb": round(megabytes, 1),
            "wall_s": round(wall, 2),
            "wall_s_per_section": round(wall / options.sections, 2),
            "cpu_s_per_section": round(cpu / options.sections, 2),
            "mb_per_s": round(megabytes / wall, 1),
            "mb_per_cpu_s": round(megabytes / cpu, 1),
            "largest_process_gb": round(usage.ru_maxrss / 1e6, 2),
            "seam_px": [
                seam_px(transforms, z, truth[z], options.width, options.height) for z in range(options.sections)
            ],
            "metrics": answer["metrics"],
        }
        print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
