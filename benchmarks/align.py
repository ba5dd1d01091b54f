"""Alignment against known truth, through the stage itself.

usage: python benchmarks/align.py [fib25] [phantom] [serial] [--seeds 0 1] [--set NAME=VALUE …]

fib25    real FIB-SEM (../shared/data/fib25/em.h5), distorted by the simulated microscope, one tile a section
phantom  the demo's phantom, the same way
serial   ../shared/bench/serial_sections (30 nm sections, ±3°, ±40 px, elastic 8 px, fold, dirt, a blank
         section), scored by its own scorer; `adjacent` of it includes real movement of the tissue

Printed as JSON for each: px between the same tissue in adjacent sections (median, 95th percentile), px
from the truth after one affine map for the whole stack, the stack's scale, CPU seconds a section of the
whole stage (reading, matching, solving, rendering, writing), and the stage's own metrics.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import cv2
import numpy as np
from montage import BENCH, cpu_s, generated, load

from happyneurons.acquisition.phantom import make_phantom, write_phantom
from happyneurons.acquisition.simulate import simulate_acquisition
from happyneurons.acquisition.truth import AcquisitionTruth
from happyneurons.imaging.transforms import AlignTransforms
from happyneurons.store.artifacts import Artifact, Bounds, Manifest, artifact_uri, load_artifact, manifest_path
from happyneurons.store.documents import Store
from happyneurons.store.volumes import create_volume
from happyneurons.worker.local import run_stage

SHARED = Path(__file__).resolve().parents[2] / "shared"
Map = Callable[[int, np.ndarray], np.ndarray | None]


def publish_stack(
    store: Store, key: str, sections: Iterable[np.ndarray], voxel_size_nm_xyz: tuple[float, float, float]
) -> str:
    """Pictures (y, x) as a section_stack, as if a job named `key` had made it; its URI."""
    data = Store(store.url(f"artifacts/{key}/stack"))
    pictures = list(sections)
    height, width = pictures[0].shape
    volume = create_volume(
        data.url("image"), start_zyx=(0, 0, 0), stop_zyx=(len(pictures), height, width),
        voxel_size_nm_xyz=voxel_size_nm_xyz, dtype="uint8", layer_type="image", chunk_zyx=(1, 1024, 1024),
    )  # fmt: skip
    for z, picture in enumerate(pictures):
        volume.write((z, 0, 0), picture[np.newaxis])
        data.put_json(f"sections/{z:06d}.json", {"z": z, "status": "ok"})
    artifact = Artifact(
        kind="section_stack", uri=artifact_uri(store, key, "stack"), data_uri=data.uri, digest=key,
        voxel_size_nm_xyz=voxel_size_nm_xyz,
        bounds=Bounds(minimum_xyz=(0, 0, 0), maximum_xyz=(width, height, len(pictures))),
    )  # fmt: skip
    manifest = Manifest(
        job_key=key,
        stage="montage",
        stage_version="0",
        params={},
        inputs={},
        outputs={"stack": artifact},
        provenance={},
    )
    store.put_json(manifest_path(key), manifest.model_dump(mode="json"))
    return artifact.uri


def align(store: Store, stack: str, params: dict[str, Any]) -> tuple[Artifact, dict[str, float], float]:
    """Aligned stack, metrics, CPU seconds."""
    before = cpu_s()
    manifest = run_stage(store, "align", inputs={"stack": stack}, params=params)
    return load_artifact(manifest.outputs["stack"].uri), manifest.metrics, cpu_s() - before


def simulated(image_uri: str, folder: Path, sections: int, seed: int, params: dict[str, Any]) -> dict[str, Any]:
    """Align a simulated acquisition of one tile a section and compare with its truth."""
    document = simulate_acquisition(image_uri, folder / "acquisition", tiles=(1, 1), sections=(0, sections), seed=seed)
    truth = AcquisitionTruth(folder / "acquisition")
    files = [folder / f"acquisition/sections/{z:06d}/tile_r0_c0.tif" for z in range(sections)]
    pictures = [cv2.imread(str(f), cv2.IMREAD_GRAYSCALE) for f in files]
    store = Store(str(folder / "store"))
    stack = publish_stack(store, "a" * 40, pictures, document.voxel_size_nm_xyz)
    aligned, metrics, seconds = align(store, stack, params)
    transforms = AlignTransforms(aligned)

    def to_aligned(z: int, canonical: np.ndarray) -> np.ndarray | None:
        warp = truth.tile_warp(z, 0, 0)
        assert warp is not None
        points = warp.inverse(canonical)
        inside = (points > 2).all(axis=1) & (points < np.array(pictures[0].shape[::-1]) - 3).all(axis=1)
        found = transforms.map(z, points)
        return None if found is None else np.where(inside[:, None], found, np.nan)

    middle = truth.tile_warp(sections // 2, 0, 0)
    assert middle is not None
    height, width = pictures[0].shape
    corner = middle.map([[0.0, 0.0]])[0]
    grid = np.stack(np.meshgrid(np.arange(15, width - 15, 8.0), np.arange(15, height - 15, 8.0)), axis=-1)
    figures = compare(to_aligned, grid.reshape(-1, 2) + corner, sections)
    return {**figures, "cpu_s_per_section": round(seconds / sections, 3), "metrics": metrics}


def compare(to_aligned: Map, canonical: np.ndarray, sections: int) -> dict[str, Any]:
    """Errors of a map canonical px → aligned px (NaN where it is not seen)."""
    placed = {z: to_aligned(z, canonical) for z in range(sections)}
    kept = [(z, p) for z, p in placed.items() if p is not None]
    adjacent = np.concatenate([np.linalg.norm(b - a, axis=1) for (_, a), (_, b) in pairwise(kept)])
    target = np.concatenate([p for _, p in kept])
    source = np.tile(canonical, (len(kept), 1))
    seen = np.isfinite(target).all(axis=1)
    design = np.column_stack([source, np.ones(len(source))])[seen]
    fit = np.linalg.lstsq(design, target[seen], rcond=None)[0]
    miss = np.linalg.norm(design @ fit - target[seen], axis=1)
    return {
        "adjacent_px": _spread(adjacent[np.isfinite(adjacent)]),
        "absolute_px": _spread(miss),
        "scale": np.linalg.svd(fit[:2])[1].round(4).tolist(),
        "sections": len(kept),
    }


def serial_sections(folder: Path, sections: int, seed: int, params: dict[str, Any]) -> dict[str, Any]:
    """Align the benchmark of serial sections and score it with its own scorer."""
    bench = generated(folder / f"serial_{sections}_{seed}", seed, sections)
    score = load(BENCH / "score.py")
    truth = score.Truth(str(bench))
    pictures = [cv2.imread(str(bench / f"sections/z{z:03d}.tif"), cv2.IMREAD_GRAYSCALE) for z in range(sections)]
    with tempfile.TemporaryDirectory() as scratch:
        store = Store(scratch)
        stack = publish_stack(store, "a" * 40, pictures, (2.5, 2.5, 30.0))
        aligned, metrics, seconds = align(store, stack, params)
        with contextlib.redirect_stdout(io.StringIO()):
            result = score.eval_align(truth, AlignTransforms(aligned).map)
    return {
        "adjacent_px": [result["adjacent"][k] for k in ("med", "p95")],
        "adjacent_without_fold_px": [result["adjacent_nofold"][k] for k in ("med", "p95")],
        "absolute_px": [result["abs_affine"][k] for k in ("med", "p95")],
        "scale": result["out_scale_sv"],
        "sections": result["sections"],
        "cpu_s_per_section": round(seconds / sections, 3),
        "metrics": metrics,
    }


def _spread(values: np.ndarray) -> list[float]:
    return [round(float(np.median(values)), 3), round(float(np.percentile(values, 95)), 3)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=["fib25", "phantom", "serial"])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "align_bench")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--sections", type=int, default=64, help="of fib25 and phantom")
    parser.add_argument("--serial-sections", type=int, default=8)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="stage parameter, JSON value")
    arguments = parser.parse_args()
    params = {k: json.loads(v) for k, v in (item.split("=", 1) for item in arguments.set)}
    for seed in arguments.seeds:
        for what in arguments.what:
            if what == "serial":
                result = serial_sections(arguments.folder, arguments.serial_sections, seed, params)
            else:
                with tempfile.TemporaryDirectory() as scratch:
                    folder = Path(scratch)
                    uri = f"h5://{SHARED / 'data/fib25/em.h5'}?em"
                    if what == "phantom":
                        phantom = make_phantom((arguments.sections, 256, 256), seed=seed)
                        uri, _ = write_phantom(phantom, (folder / "phantom").as_uri())
                    result = simulated(uri, folder, arguments.sections, seed, params)
            print(json.dumps({"what": what, "seed": seed, **result}), flush=True)


if __name__ == "__main__":
    main()
