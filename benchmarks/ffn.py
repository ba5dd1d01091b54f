"""Flood-filling segmentation of real FIB-SEM: ours, exact and fast, against a peer, in one run.

usage: python benchmarks/ffn.py [--out report.json] [--threads 2] [--google-ffn CHECKOUT [--google-python PYTHON]]

Segments `em[0:128, 0:128, 0:128]` of ../shared/data/fib25 with Google's published network and options. The peer is
google/ffn's own code where a checkout of it is given (benchmarks/peers/google_ffn.py says what it needs), else our
TensorFlow backend in exact mode, which makes the same network calls. Each side is a process of its own, one after the
other on an otherwise idle machine; times are from the first seed search to the last object, without start-up.

Printed, and written to --out: seconds and CPU seconds; `speedup`, the peer's seconds over ours; the time of a network
call (median, 10th and 90th percentile); the share of the processor's measured peak that the network calls reach,
counted as direct convolutions (`peak_share`; more than 1 is possible, as Winograd's method multiplies 5.8 times less);
voxels that differ from the segmentation that google/ffn gave (`voxels_differing`); and scores against the ground
truth by ../shared/bench/ffn/score.py, for the whole crop and without 16 voxels at each face.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
EM = SHARED / "data" / "fib25" / "em.h5"
GOOGLE_RESULT = SHARED / "data" / "fib25" / "google_ffn_crop_0-128.npz"
CHECKPOINT = SHARED / "models" / "fib25" / "model.ckpt-27465036"
SCORE = SHARED / "bench" / "ffn" / "score.py"

SIDES: dict[str, dict[str, Any]] = {
    "exact": {"backend": "winograd", "options": {"skip_explored_fraction": 0}},
    "fast": {"backend": "winograd", "options": {}},
    "peer": {"backend": "tensorflow", "options": {"skip_explored_fraction": 0}},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the report here, as JSON")
    parser.add_argument("--threads", type=int, default=2, help="threads of each side")
    parser.add_argument("--size", type=int, default=128, help="edge of the crop, voxels (a quick look: 64)")
    parser.add_argument("--sides", nargs="+", default=["peer", "exact", "fast"], choices=list(SIDES))
    parser.add_argument("--google-ffn", type=Path, help="a checkout of github.com/google/ffn: the peer is its code")
    parser.add_argument("--google-python", default=sys.executable, help="a Python with what that checkout needs")
    parser.add_argument("--one", choices=list(SIDES), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        _run_ours(arguments.one, arguments.size, arguments.threads, arguments.out)
        return
    report: dict[str, Any] = {"size": arguments.size, "threads": arguments.threads, "peer_is": "our TensorFlow backend"}
    with tempfile.TemporaryDirectory() as folder:
        for side in arguments.sides:
            segmentation = Path(folder) / f"{side}.npz"
            if side == "peer" and arguments.google_ffn:
                from peers.google_ffn import run_google_ffn

                report["peer_is"] = "google/ffn"
                report[side] = run_google_ffn(
                    arguments.google_ffn, arguments.google_python, EM, CHECKPOINT, arguments.size, arguments.threads,
                    segmentation,
                )  # fmt: skip
            else:
                report[side] = _in_a_process(side, arguments, segmentation)
            report[side] |= _judge(segmentation, arguments.size)
            print(side, json.dumps(report[side]), flush=True)
    _compare(report)
    print(json.dumps({k: v for k, v in report.items() if k not in SIDES} | _ratios(report), indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")


def _in_a_process(side: str, arguments: argparse.Namespace, segmentation: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, "--one", side, "--out", str(segmentation), "--size", str(arguments.size)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*command, "--threads", str(arguments.threads)], env=environment, check=True, stdout=subprocess.PIPE
    )
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def _run_ours(side: str, size: int, threads: int, segmentation: Path) -> None:
    """One side, in this process: prints its figures, writes its segmentation."""
    import h5py
    import numpy as np

    from happyneurons.ffn.backends import make_step
    from happyneurons.ffn.backends.winograd import peak_flops
    from happyneurons.ffn.inference import segment_subvolume
    from happyneurons.ffn.model import load_model
    from happyneurons.ffn.options import InferenceOptions

    with h5py.File(EM) as file:
        image = file["em"][:size, :size, :size]
    model = load_model(f"ckpt://{CHECKPOINT}")
    step = make_step(SIDES[side]["backend"], model, threads)
    calls: list[float] = []

    class Timed:
        architecture = model.architecture

        def __call__(self, image: np.ndarray, seed: np.ndarray) -> np.ndarray:
            begun = time.perf_counter()
            logits = step(image, seed)
            calls.append(time.perf_counter() - begun)
            return logits

    begun, cpu = time.perf_counter(), time.process_time()
    result = segment_subvolume(image, Timed(), InferenceOptions(**SIDES[side]["options"]))
    seconds, cpu_s = time.perf_counter() - begun, time.process_time() - cpu
    np.savez_compressed(segmentation, segmentation=result.segmentation)
    a = model.architecture
    kernel = 27 * a.features * (2 + (2 * a.depth - 1) * a.features) + a.features
    flops = 2.0 * kernel * float(np.prod(a.fov_zyx))
    low, middle, high = np.percentile(calls, [10, 50, 90])
    print(
        json.dumps(
            {
                "seconds": round(seconds, 1),
                "cpu_s": round(cpu_s, 1),
                "network_calls": result.counters["fov_steps"],
                "calls_left_out": result.counters.get("fov_skipped", 0) - result.counters.get("fov_revisited", 0),
                "call_ms": {"p10": round(low * 1e3, 1), "median": round(middle * 1e3, 1), "p90": round(high * 1e3, 1)},
                "share_in_network": round(sum(calls) / seconds, 3),
                "peak_share": round(flops * len(calls) / sum(calls) / (peak_flops() * threads), 3),
                "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
            }
        )
    )


def _judge(segmentation: Path, size: int) -> dict[str, Any]:
    """Scores by score.py, and the difference from what google/ffn's code gave (whole crop only)."""
    import numpy as np

    figures: dict[str, Any] = {"scores": {"whole": score(segmentation), "inner": score(segmentation, 16)}}
    figures["coverage"] = figures["scores"]["whole"]["coverage"]
    if size == 128:
        with np.load(segmentation) as found, np.load(GOOGLE_RESULT) as google:
            theirs = np.where(google["segmentation"] > 0, google["segmentation"], 0)
            figures["voxels_differing"] = int((found["segmentation"] != theirs).sum())
    return figures


def score(segmentation: Path, inner: int = 0) -> dict[str, Any]:
    """What score.py finds in `segmentation` (npz), without `inner` voxels at each face."""
    command = [sys.executable, str(SCORE), str(segmentation), "--inner", str(inner)]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return {k: v for k, v in found.items() if k != "seg"}


def _compare(report: dict[str, Any]) -> None:
    if "peer" in report:
        for side in ("exact", "fast"):
            if side in report:
                report[side]["speedup"] = round(report["peer"]["seconds"] / report[side]["seconds"], 2)
                report[side]["cpu_speedup"] = round(report["peer"]["cpu_s"] / report[side]["cpu_s"], 2)


def _ratios(report: dict[str, Any]) -> dict[str, Any]:
    shown = ("speedup", "cpu_speedup", "voxels_differing", "coverage", "seconds", "peak_share")
    return {side: {k: report[side].get(k) for k in shown} for side in SIDES if side in report}


if __name__ == "__main__":
    main()
