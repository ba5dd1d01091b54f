"""Montage and alignment of serial sections with known truth, scored by the benchmark's own scorer.

usage: python benchmarks/serial_sections.py --data DIR [--out report.json]
       python benchmarks/serial_sections.py --seed 7 [--sections 16] [--zstep 3] …
       … --peer feabas --feabas-python feabas-venv/bin/python --feabas-checkout feabas [--peer aligntk]

DIR is what ../shared/bench/serial_sections/generate.py wrote (real FIB-SEM as tiles with jitter, lens and stage errors;
sections with elastic deformation, a fold, dirt and a blank one); with --seed it is made first. Montage starts from the
tiles, alignment from the benchmark's own sections, so that the errors of one are not those of the other.

Report: `montage.seam_px` (same tissue in two tiles), `montage.global_px` (after one affine map for each section),
`align.adjacent_px` (same tissue in neighbouring sections), `align.gap_px` (the neighbours of a dropped section), each
{median, p95} in px of the generated images; `montage.cpu_s_per_section`, `align.cpu_s_per_section` (the whole stage:
reading, matching, solving, rendering, writing); `align.scale` (singular values of the aligned stack's mean map from the
sections that it was given: 1 is what it should keep) and `align.scale_to_truth` (the same from the undistorted tissue,
which sections of random scale do not tell); `dropped_sections`. Tissue that really moves from section to section counts
as error in `adjacent_px` and `gap_px`.

With --peer the same data goes through other programs, one worker and one thread each, scored by the same scorer:
`peers.NAME.montage`, `peers.NAME.align` (as above) and `ratios.NAME`, the peer's figure divided by ours: more than 1 is
for us. feabas: benchmarks/peers/feabas.py says what it needs and does; its `gap_px` is across the blank section, its
`cpu_s_per_section` is without its start, rendering and smaller pictures, where ours has all but the start in it.
aligntk: our stage with `backend: aligntk` (docs/align.md; HPN_ALIGNTK_BIN names its folder; about a minute a pair),
alignment only.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from align import align, publish_stack
from montage import BENCH, cpu_s, generated, load, tile_set
from peers import feabas

from happyneurons.imaging.transforms import AlignTransforms, MontageTransforms
from happyneurons.store.artifacts import load_artifact
from happyneurons.store.documents import Store
from happyneurons.worker.local import run_stage

# Distance of the planes of the FIB-SEM that the benchmark is made from.
_PLANE_NM = 10.0

Map = Callable[[int, np.ndarray], "np.ndarray | None"]  # (section, px) → aligned px
TileMap = Callable[[int, tuple[int, int], np.ndarray], "np.ndarray | None"]  # (section, (row, column), px) → montage px


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of a generated benchmark")
    parser.add_argument("--seed", type=int, help="make a benchmark with this seed instead")
    parser.add_argument("--sections", type=int, default=16, help="of a benchmark that is made")
    parser.add_argument(
        "--zstep", type=int, default=3, help="planes of 10 nm a section; of --data: what it was made with"
    )
    parser.add_argument(
        "--mirrored", type=int, default=1, help="so many times as wide and high, of a benchmark that is made"
    )
    parser.add_argument("--parts", nargs="+", choices=("montage", "align"), default=["montage", "align"])
    parser.add_argument("--montage-params", type=json.loads, default={}, help="JSON")
    parser.add_argument("--align-params", type=json.loads, default={}, help="JSON")
    parser.add_argument("--peer", action="append", choices=("feabas", "aligntk"), default=[], help="repeatable")
    parser.add_argument("--feabas-python", type=Path, help="of an environment that has FEABAS")
    parser.add_argument("--feabas-checkout", type=Path, help="of github.com/YuelongWu/feabas: its scripts and configs")
    parser.add_argument("--out", type=Path, help="write the report here, as JSON")
    options = parser.parse_args()
    if (options.data is None) == (options.seed is None):
        parser.error("give --data or --seed")
    if "feabas" in options.peer and not (options.feabas_python and options.feabas_checkout):
        parser.error("--peer feabas needs --feabas-python and --feabas-checkout")
    with tempfile.TemporaryDirectory() as scratch:
        data = options.data or generated(
            Path(scratch) / "bench", options.seed, options.sections, options.zstep, options.mirrored
        )
        score = load(BENCH / "score.py")
        truth = score.Truth(str(data))
        report: dict[str, Any] = {"data": str(data), "sections": truth.n, "size_px": truth.W}
        if "montage" in options.parts:
            report["montage"] = _montage(score, truth, data, Store(f"{scratch}/montage"), options.montage_params)
        if "align" in options.parts:
            report["align"] = _align(
                score, truth, data, Store(f"{scratch}/align"), options.align_params, _PLANE_NM * options.zstep
            )
            report["dropped_sections"] = report["align"].pop("dropped_sections")
        for name in dict.fromkeys(options.peer):
            folder = Path(scratch) / name
            folder.mkdir()
            found = {"feabas": _feabas, "aligntk": _aligntk}[name](score, truth, data, folder, options)
            report.setdefault("peers", {})[name] = found
            report.setdefault("ratios", {})[name] = {
                p: _ratios(found[p], report[p]) for p in options.parts if p in found
            }
    print(json.dumps(report, indent=1))
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")


def _montage(score: Any, truth: Any, data: Path, store: Store, params: dict[str, Any]) -> dict[str, Any]:
    tiles = tile_set(data, store, "bench")
    before = cpu_s()
    manifest = run_stage(store, "montage", inputs={"tiles": tiles.uri}, params=params)
    used = cpu_s() - before
    transforms = MontageTransforms(load_artifact(manifest.outputs["stack"].uri))
    found = _montage_figures(score, truth, transforms.map)
    return {**found, "cpu_s_per_section": round(used / truth.n, 3)}


def _montage_figures(score: Any, truth: Any, place: TileMap) -> dict[str, Any]:
    with contextlib.redirect_stdout(io.StringIO()):
        found = score.eval_montage(truth, lambda z, t, xy: place(z, divmod(t, truth.G), np.asarray(xy)))
    return {
        "seam_px": _spread(found["seam"]),
        "global_px": _spread(found["glob"]),
        "failed_sections": found["failed_sections"],
    }


def _align(
    score: Any, truth: Any, data: Path, store: Store, params: dict[str, Any], thickness_nm: float
) -> dict[str, Any]:
    files = [data / f"sections/z{z:03d}.tif" for z in range(truth.n)]
    pictures = [cv2.imread(str(f), cv2.IMREAD_GRAYSCALE) for f in files]
    stack = publish_stack(store, "a" * 40, pictures, (2.5, 2.5, thickness_nm))
    aligned, _, used = align(store, stack, params)
    transforms = AlignTransforms(aligned)
    dropped = [z for z in range(truth.n) if transforms.map(z, np.zeros((1, 2))) is None]
    found = _align_figures(score, truth, transforms.map, dropped)
    return {**found, "cpu_s_per_section": round(used / truth.n, 3), "dropped_sections": dropped}


def _align_figures(score: Any, truth: Any, place: Map, gaps: list[int]) -> dict[str, Any]:
    """gaps: the sections whose neighbours `gap_px` compares."""
    found = _score_align(score, truth, place, range(truth.n))
    across = [_score_align(score, truth, place, (z - 1, z + 1)) for z in gaps if 0 < z < truth.n - 1]
    return {
        "adjacent_px": _spread(found["adjacent"]),
        "gap_px": {k: float(np.median([_spread(g["adjacent"])[k] for g in across])) for k in ("median", "p95")}
        if across
        else None,
        "absolute_px": _spread(found["abs_affine"]),
        "scale": _mean_scale(place, [z for z in range(truth.n) if z not in gaps], truth.W),
        "scale_to_truth": found["out_scale_sv"],
    }


def _mean_scale(place: Map, sections: list[int], size: int) -> list[float]:
    """Singular values of the mean over sections of the affine map section px → aligned px."""
    axis = np.arange(0.0, size, 64)
    xy = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    design = np.column_stack([xy, np.ones(len(xy))])
    placed = [p for z in sections if (p := place(z, xy)) is not None]
    seen = [np.isfinite(p).all(axis=1) for p in placed]
    maps = [np.linalg.lstsq(design[s], p[s], rcond=None)[0][:2] for s, p in zip(seen, placed, strict=True)]
    return [round(float(v), 5) for v in np.linalg.svd(np.mean(maps, axis=0))[1]]


def _score_align(score: Any, truth: Any, place: Map, sections: Any) -> dict[str, Any]:
    wanted = set(sections)
    with contextlib.redirect_stdout(io.StringIO()):
        found: dict[str, Any] = score.eval_align(truth, lambda z, xy: place(z, xy) if z in wanted else None)
    return found


def _feabas(score: Any, truth: Any, data: Path, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    report: dict[str, Any] = {}
    for part in options.parts:
        (folder / part).mkdir()
        peer = feabas.Feabas(
            options.feabas_python, options.feabas_checkout, folder / part, thickness_nm=_PLANE_NM * options.zstep
        )
        if part == "montage":
            report[part] = _montage_figures(score, truth, feabas.montage(peer, data, truth.ts))
        else:
            place = feabas.align(peer, data, truth.n, truth.W)
            report[part] = _align_figures(score, truth, place, [truth.special["blank"]])
        report[part]["cpu_s_per_section"] = round(peer.counted_cpu_s() / truth.n, 3)
        report[part]["cpu_s_by_stage"] = {name: round(seconds, 2) for name, seconds in peer.cpu_s.items()}
        report[part]["cpu_s_per_section_with_start"] = round(peer.cpu_s_with_start / truth.n, 3)
        report["version"] = peer.version()
    return report


def _aligntk(score: Any, truth: Any, data: Path, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    if "align" not in options.parts:
        return {}
    before = feabas.children_cpu_s()
    params = {**options.align_params, "backend": "aligntk"}
    found = _align(score, truth, data, Store(str(folder)), params, _PLANE_NM * options.zstep)
    used = found["cpu_s_per_section"] + (feabas.children_cpu_s() - before) / truth.n  # its programs are processes
    return {"align": {**found, "cpu_s_per_section": round(used, 3)}}


def _ratios(peer: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
    """The peer's errors and CPU seconds divided by ours."""
    ratios: dict[str, Any] = {}
    for name in ("seam_px", "global_px", "adjacent_px", "gap_px", "absolute_px"):
        if peer.get(name) and ours.get(name):
            ratios[name] = {k: round(peer[name][k] / ours[name][k], 2) for k in ("median", "p95")}
    return {**ratios, "cpu_s_per_section": round(peer["cpu_s_per_section"] / ours["cpu_s_per_section"], 2)}


def _spread(figures: dict[str, float]) -> dict[str, float]:
    return {"median": figures["med"], "p95": figures["p95"]}


if __name__ == "__main__":
    main()
