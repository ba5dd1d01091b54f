"""Masks: what a U-Net learns in minutes, cell bodies told apart, and segmenting around them.

usage: PYTHONPATH=services python benchmarks/masks.py [--parts vnc bodies segment] [--seed N] [--steps N]
           [--store DIR] [--out FILE]

vnc      mitochondria of the Drosophila ventral nerve cord (../shared/data/vnc, 4.6 nm, here at half of that):
         trained on sections 0-9, judged by section 10 as training goes, tested on 11-13, which nothing
         before looked at. Dice and IoU by voxel; the wall and CPU seconds of the training.
bodies   a phantom with cell bodies, some of which touch: a small network is trained on four of its sections, and
         the objects that the watershed makes of its mask are compared with the true bodies: adapted Rand error over
         the bodies, and objects found.
segment  that phantom segmented by the demo network, with a mask of bodies that have grown and without: segments that
         cross a body. A segment does if it has a voxel more than 4 px inside of a body, and one outside of all bodies;
         one that touches a body's rim only does not. crossing_voxels are those of such segments so far inside.

--steps 3 trains next to nothing: to see that all parts run.

Prints one line of JSON a part.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from happyneurons.metrics.segmentation import scores, truth_table
from happyneurons.store.artifacts import Manifest
from happyneurons.store.documents import Store
from happyneurons.store.pyramid import add_levels, blocks, write_level
from happyneurons.store.volumes import PrecomputedVolume, create_volume, open_volume
from happyneurons.worker.local import run_stage

ROOT = Path(__file__).resolve().parents[1]
VNC = ROOT.parent / "shared" / "data" / "vnc" / "stack1"
DEMO_MODEL = str(ROOT / "services" / "happyneurons" / "models" / "demo_ffn")
RIM_PX = 4
# Tuned on the phantom of seed 4, where it is the inner voxels that are left out that count.
AROUND = {"threshold": 0.3, "smooth_nm": 16, "grow_nm": 64, "fill_holes_voxels": 20_000}


@contextmanager
def timed(figures: dict[str, Any], name: str) -> Iterator[None]:
    """Wall and CPU seconds of this process and its children."""

    def cpu() -> float:
        both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return sum(u.ru_utime + u.ru_stime for u in both)

    wall, before = time.monotonic(), cpu()
    yield
    figures[f"{name}_wall_s"] = round(time.monotonic() - wall, 1)
    figures[f"{name}_cpu_s"] = round(cpu() - before, 1)


def put(store: Store, name: str, array: np.ndarray, size_xyz: tuple[float, float, float], kind: Any) -> str:
    """A volume with one more level; its URI."""
    uri = store.url(name)
    volume = create_volume(
        uri, start_zyx=(0, 0, 0), stop_zyx=array.shape, voxel_size_nm_xyz=size_xyz, dtype=str(array.dtype),
        layer_type=kind,
    )  # fmt: skip
    volume.write((0, 0, 0), array)
    add_levels(uri, 1)
    for box in blocks(PrecomputedVolume(uri, 1), (4, 4, 4)):
        write_level(uri, 1, box, "mean" if kind == "image" else "mode")
    return uri


def output(manifest: Manifest, name: str) -> str:
    return f"{manifest.outputs[name].uri}"


def array(manifest: Manifest, name: str) -> np.ndarray:
    volume = open_volume(manifest.outputs[name].data_uri)
    return volume.read(volume.start_zyx, volume.stop_zyx)


def vnc(store: Store, args: argparse.Namespace) -> dict[str, Any]:
    import cv2

    if not VNC.is_dir():
        return {"skipped": f"there is no {VNC}"}
    raw, drawn = (
        np.stack([cv2.imread(str(VNC / name / f"{z:02d}.png"), cv2.IMREAD_GRAYSCALE) for z in range(14)])
        for name in ("raw", "mitochondria")
    )
    size = (4.6, 4.6, 50.0)
    image = put(store, "vnc/image", raw, size, "image")
    labels = put(store, "vnc/labels", (drawn >= 128).astype(np.uint8), size, "segmentation")
    figures: dict[str, Any] = {}
    with timed(figures, "training"):
        trained = run_stage(
            store, "mask-train", inputs={"image": image, "labels": labels},
            params={
                "mip": 1, "sections": "0-9", "validation_sections": "10", "steps": args.steps or 500,
                "step_threads": 2,
                "classes": [{"name": "mitochondrion"}],
            },
        )  # fmt: skip
    figures |= {"steps": trained.metrics["step"], "validation_dice": round(trained.metrics["dice"], 4)}
    for flips in (False, True):
        name = "flips" if flips else "plain"
        with timed(figures, f"mask_{name}"):
            made = run_stage(
                store, "mask", inputs={"image": image, "model": output(trained, "model")},
                params={"bounds_xyz": [[0, 0, 11], [512, 512, 14]], "flips": flips, "num_mips": 0},
            )  # fmt: skip
        scored = run_stage(
            store, "evaluate", inputs={"mask": output(made, "mask"), "mask_truth": labels}, params={}
        ).metrics  # fmt: skip
        figures |= {f"test_{n}_{name}": round(scored[f"mask_{n}"], 4) for n in ("dice", "iou", "precision", "recall")}
    return figures


def make_bodies(store: Store, args: argparse.Namespace) -> tuple[np.ndarray, dict[str, str], Manifest, dict[str, Any]]:
    """(true bodies, URIs of image and bodies, the job of the mask, figures)."""
    from happyneurons.acquisition.phantom import make_phantom

    phantom = make_phantom((64, 192, 192), seed=args.seed, anisotropy=2.0, cell_bodies=6)
    assert phantom.bodies is not None
    size, name = phantom.voxel_size_nm_xyz, f"bodies{args.seed}"
    drawn = np.zeros(phantom.bodies.shape, np.uint8)
    drawn[8::12] = np.where(phantom.bodies[8::12] > 0, 1, 0)
    uris = {
        "image": put(store, f"{name}/image", phantom.image, size, "image"),
        "drawn": put(store, f"{name}/drawn", drawn, size, "segmentation"),
        "truth": put(store, f"{name}/truth", phantom.bodies.astype(np.uint32), size, "segmentation"),
    }
    figures: dict[str, Any] = {"bodies": int(phantom.bodies.max())}
    with timed(figures, "training"):
        trained = run_stage(
            store, "mask-train", inputs={"image": uris["image"], "labels": uris["drawn"]},
            params={
                "classes": [{"name": "cell_body"}], "steps": args.steps or 200, "patch_px": 128,
                "sections": "8,20,32,44",
                "validation_sections": "56", "block_steps": 40, "step_threads": 2, "features": 16,
            },
        )  # fmt: skip
    figures["validation_dice"] = round(trained.metrics["dice"], 4)
    rule = {
        "smooth_nm": 16, "fill_holes_voxels": 2000, "instances": "watershed", "seed_distance_nm": 160,
        "min_radius_nm": 60, "max_diameter_nm": 600,
    }  # fmt: skip
    with timed(figures, "mask"):
        made = run_stage(
            store, "mask", inputs={"image": uris["image"], "model": output(trained, "model")},
            params={"classes": {"cell_body": rule}, "min_size_voxels": 2000, "object_block_size_xyz": [64, 64, 64]},
        )  # fmt: skip
    return phantom.bodies, uris, made, figures


def bodies(store: Store, args: argparse.Namespace) -> dict[str, Any]:
    truth, uris, made, figures = make_bodies(store, args)
    found = array(made, "instances")
    figures["adapted_rand_error"] = round(scores(truth_table(found, truth)).adapted_rand_error, 4)
    scored = run_stage(
        store, "evaluate", inputs={"mask": output(made, "instances"), "mask_truth": uris["truth"]},
        params={"mask_labels": "objects"},
    ).metrics  # fmt: skip
    names = ("dice", "object_precision", "object_recall", "object_found")
    return figures | {name: round(scored[f"mask_{name}"], 4) for name in names}


def segment(store: Store, args: argparse.Namespace) -> dict[str, Any]:
    from scipy.ndimage import distance_transform_edt

    truth, uris, made, _ = make_bodies(store, args)
    inner = distance_transform_edt(truth > 0, sampling=(2, 1, 1)) > RIM_PX
    wide = run_stage(
        store, "mask", inputs={"probability": output(made, "probability")},
        params={"classes": {"cell_body": AROUND}, "num_mips": 0},
    )  # fmt: skip
    left_out = array(wide, "mask") > 0
    figures: dict[str, Any] = {
        "inner_voxels_masked": round(float(left_out[inner].mean()), 4),
        "tissue_masked": round(float(left_out[truth == 0].mean()), 4),
    }
    for name, inputs in (("with_mask", {"mask": output(wide, "mask")}), ("without_mask", {})):
        with timed(figures, f"segment_{name}"):
            job = run_stage(
                store, "segment", inputs={"image": uris["image"], "model": DEMO_MODEL, **inputs},
                params={"any_voxel_size": True, "subvolume_size_xyz": [192, 192, 64], "overlap_xyz": [48, 48, 32]},
            )  # fmt: skip
        boxes = Store(job.outputs["subvolumes"].data_uri)
        crossing, voxels = 0, 0
        for path in boxes.list(""):
            if path.count("/") or not path.endswith(".npz"):
                continue
            arrays = boxes.get_arrays(path)
            ids, start = arrays["segmentation"], arrays["start_zyx"]
            part = tuple(slice(a, a + n) for a, n in zip(start, ids.shape, strict=True))
            both = np.intersect1d(ids[inner[part]], ids[truth[part] == 0])
            both = both[both > 0]
            crossing += len(both)
            voxels += int(np.isin(ids[inner[part]], both).sum())
        figures |= {f"crossing_{name}": crossing, f"crossing_voxels_{name}": voxels}
    return figures


Part = Callable[[Store, argparse.Namespace], dict[str, Any]]
PARTS: dict[str, Part] = {"vnc": vnc, "bodies": bodies, "segment": segment}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--store", help="folder to work in, and to find finished jobs in; default: a temporary one")
    parser.add_argument("--seed", type=int, default=3, help="of the phantom; parameters were tuned on seed 4")
    parser.add_argument("--steps", type=int, help="train so long only, to see that it runs")
    parser.add_argument("--out", type=Path, help="also append the lines to this file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        store = Store(args.store or scratch)
        for part in args.parts:
            line = json.dumps({"part": part, **PARTS[part](store, args)})
            print(line, flush=True)
            if args.out is not None:
                with args.out.open("a") as file:
                    file.write(line + "\n")


if __name__ == "__main__":
    sys.exit(main())
