"""Training flood-filling networks: what it gains on real tissue, what it learns from nothing, and resuming.

usage: PYTHONPATH=services python benchmarks/ffn_train.py [--parts transfer scratch resume] [--out FILE]

transfer  Google's FIB-25 checkpoint, trained on one half (y < 125) of the labelled FIB-25 volume and
          tested on the other, against the checkpoint as it is: F1 of patches walked over, and VOI of
          segmenting a crop. The state is chosen by a slab of the training half; the test half is
          not looked at before the end. The last two modules are trained; a step takes seconds on a CPU,
          all of it half an hour on 2 cores.
scratch   a small network that learns a phantom, tested on another phantom: `segment`, adapted Rand error.
resume    two shards, killed with SIGKILL in the middle and started again, on another number of ranks:
          the same bytes as an undisturbed training.

Prints one line of JSON a part.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from happyneurons.acquisition.phantom import make_phantom
from happyneurons.ffn.examples import PatchSource, patch_half_zyx
from happyneurons.ffn.sampling import BalancedSampler, BlockCoordinates, open_gaps, partition_map
from happyneurons.store.artifacts import load_artifact
from happyneurons.store.documents import Store
from happyneurons.store.volumes import create_volume
from happyneurons.worker.local import run_stage

HALF_Y = 125
MILD = {
    "permute_axes": "xyz", "contrast": 0.1, "brightness": 0.1, "section_contrast": 0.0, "section_brightness": 0.0,
    "noise": 0.0, "blur_px": 0.0, "jitter_px": 0.0, "missing": 0.0,
}  # fmt: skip
"""FIB-SEM has neither misaligned nor missing sections."""


def put(store: Store, name: str, array: np.ndarray, voxel_size_nm: float) -> str:
    """URI of an array (z, y, x) as a precomputed volume; labels are of more than 8 bits."""
    uri = store.url(name)
    volume = create_volume(
        uri,
        start_zyx=(0, 0, 0),
        stop_zyx=array.shape,
        voxel_size_nm_xyz=(voxel_size_nm,) * 3,
        dtype=str(array.dtype),
        layer_type="image" if array.dtype == np.uint8 else "segmentation",
    )
    volume.write((0, 0, 0), array)
    return uri


def walked_patches(model_uri: str, image: np.ndarray, labels: np.ndarray, patches: int) -> dict[str, float]:
    """Figures of a model over balanced patches of a volume; the same patches for every model."""
    from happyneurons.ffn.model import load_model
    from happyneurons.ffn.training import Trainer, TrainingOptions
    from happyneurons.ffn.validation import figures, judge

    model = load_model(model_uri)
    architecture = model.architecture
    labels = open_gaps(labels, 1)
    half = patch_half_zyx(architecture, 0, None)
    inner = tuple(slice(h, n - h) for h, n in zip(half, labels.shape, strict=True))
    block = BlockCoordinates.of(partition_map(labels, architecture.fov_zyx, inner), half, np.random.default_rng(0))
    sampler = BalancedSampler(np.array([block.counts]), lambda _: block.kept)

    def cut(rng: np.random.Generator, half_zyx: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
        _, centre = sampler.draw(rng)
        box = tuple(slice(c - h, c + h + 1) for c, h in zip(centre, half_zyx, strict=True))
        return architecture.normalize(image[box]), labels[box]

    source = PatchSource(cut, architecture, fov_moves=0, augmentation=None)
    trainer = Trainer(architecture, model.weights, TrainingOptions())
    return figures(judge(trainer.predict, architecture, source, range(patches), seed=99, batch_size=2))


def segmented(store: Store, image: str, model: str, labels: np.ndarray, **params: Any) -> dict[str, float]:
    """Scores of segmenting a whole volume as one subvolume."""
    from happyneurons.metrics.segmentation import connected_objects, scores, truth_table

    size = {"subvolume_size_xyz": list(labels.shape[::-1]), "overlap_xyz": [33, 33, 33]}
    manifest = run_stage(store, "segment", inputs={"image": image, "model": model}, params={**size, **params})
    data = load_artifact(manifest.outputs["subvolumes"].uri).store().get_arrays("0_0_0.npz")["segmentation"]
    found = scores(truth_table(data, connected_objects(labels)))
    return {
        "voi_split": found.voi_split,
        "voi_merge": found.voi_merge,
        "voi": found.voi_split + found.voi_merge,
        "adapted_rand_error": found.adapted_rand_error,
        "coverage": float((data > 0).mean()),
    }


def transfer(store: Store, options: argparse.Namespace) -> dict[str, Any]:
    import h5py

    with h5py.File(options.data / "fib25/labels_z000-128.h5") as file:
        labels = np.asarray(file["labels"][:])
    with h5py.File(options.data / "fib25/em.h5") as file:
        image = np.asarray(file["em"][: len(labels)])
    checkpoint = f"ckpt://{options.data.parent / 'models/fib25/model.ckpt-27465036'}"
    train = np.s_[:, :HALF_Y], np.s_[:, HALF_Y:]
    inputs = {
        "image": [put(store, "fib25/image", image[train[0]], 10.0)],
        "labels": [put(store, "fib25/labels", labels[train[0]].astype(np.uint64), 10.0)],
        "initial_model": [checkpoint],
    }
    params = {
        "steps": options.steps, "block_steps": options.block_steps, "batch_size": options.batch_size,
        "learning_rate": options.learning_rate, "warmup_steps": 4, "fov_moves": options.fov_moves,
        "trained_modules": options.trained_modules, "step_threads": options.threads,
        "validation_patches": options.validation_patches,
        "validation_fraction": 0.34, "validation_axis": "x", "augmentation": MILD,
    }  # fmt: skip
    started = time.process_time()
    manifest = run_stage(store, "ffn-train", inputs=inputs, params=params)
    result: dict[str, Any] = {"training": manifest.metrics, "training_cpu_s": round(time.process_time() - started)}
    trained = manifest.outputs["model"].data_uri
    tissue, truth = image[train[1]], labels[train[1]]
    for name, uri in (("untrained", checkpoint), ("trained", trained)):
        result[name] = walked_patches(uri, tissue, truth, options.test_patches)
        print(json.dumps({"part": "transfer", name: result[name]}), flush=True)
    if options.crop:
        # In the middle of the test half.
        centre = [n // 2 for n in truth.shape]
        box = tuple(slice(c - options.crop // 2, c + options.crop // 2) for c in centre)
        crop = put(store, "fib25/crop", tissue[box], 10.0)
        for name, uri in (("untrained", checkpoint), ("trained", manifest.outputs["model"].uri)):
            result[name].update(segmented(store, crop, uri, truth[box], skip_explored_fraction=0.05))
            print(json.dumps({"part": "transfer", name: result[name]}), flush=True)
    return result


def phantom_inputs(store: Store, seed: int, shape_zyx: tuple[int, int, int]) -> tuple[str, str, np.ndarray]:
    phantom = make_phantom(shape_zyx, seed=seed)
    names = f"phantom{seed}/image", f"phantom{seed}/labels"
    return put(store, names[0], phantom.image, 8.0), put(store, names[1], phantom.labels, 8.0), phantom.labels


def scratch(store: Store, options: argparse.Namespace) -> dict[str, Any]:
    image, labels, _ = phantom_inputs(store, 21, (64, 128, 128))
    params = {
        "depth": 4, "features": 8, "fov_xyz": [17, 17, 17], "deltas_xyz": [4, 4, 4], "steps": options.scratch_steps,
        "block_steps": options.scratch_steps // 5, "batch_size": 4, "learning_rate": 3e-3, "warmup_steps": 30,
        "validation_fraction": 0.35, "validation_axis": "x", "validation_patches": 24,
    }  # fmt: skip
    wall, cpu = time.perf_counter(), time.process_time()
    manifest = run_stage(store, "ffn-train", inputs={"image": [image], "labels": [labels]}, params=params)
    result = {
        "training": manifest.metrics,
        "wall_s": round(time.perf_counter() - wall),
        "cpu_s": round(time.process_time() - cpu),
    }
    other, _, truth = phantom_inputs(store, 22, (48, 96, 96))
    segment = {"mirror_faces": True, "keep_connected": True, "seed_order": "depth", "skip_explored_fraction": 0.2}
    test = segmented(store, other, manifest.outputs["model"].uri, truth, min_segment_size=300, **segment)
    return {**result, "another_phantom": test}


def resume(store: Store, _: argparse.Namespace) -> dict[str, Any]:
    image, labels, _ = phantom_inputs(store, 23, (32, 64, 80))
    params = {
        "depth": 2, "features": 4, "fov_xyz": [11, 11, 9], "deltas_xyz": [3, 3, 2], "steps": 40, "block_steps": 10,
        "batch_size": 2, "shards": 2, "validation_patches": 4,
    }  # fmt: skip
    digests, kills = [], 0
    for name, ranks, kill in (("undisturbed", 1, False), ("killed", 1, True), ("ranks", 2, False)):
        folder = Store(store.url(name))
        command = [
            sys.executable, "-m", "happyneurons.cli.main", "stage", "run", "ffn-train", "--store", folder.uri,
            "--input", f"image={image}", "--input", f"labels={labels}", "-n", str(ranks),
            *(part for key, value in params.items() for part in ("--param", f"{key}={json.dumps(value)}")),
        ]  # fmt: skip
        if kill:
            kills += kill_in_the_middle(command, folder)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        digest = hashlib.sha256()
        for path in sorted(p for p in folder.list("artifacts") if not p.endswith("info")):
            digest.update(path.encode() + folder.get(path))
        digests.append(digest.hexdigest())
    return {"same_bytes": len(set(digests)) == 1, "killed": kills, "sha256": digests[0]}


def kill_in_the_middle(command: list[str], folder: Store) -> int:
    """Start a training and kill it with its workers once two blocks are there; 1 if it was still running."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        if any("00000020/mean" in path for path in folder.list("artifacts")):
            parent = psutil.Process(process.pid)
            for one in (parent, *parent.children(recursive=True)):
                one.send_signal(signal.SIGKILL)
            break
        time.sleep(0.05)
    return int(process.wait() != 0)


PARTS: dict[str, Callable[[Store, argparse.Namespace], dict[str, Any]]] = {
    "transfer": transfer, "scratch": scratch, "resume": resume,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared/data")
    parser.add_argument("--steps", type=int, default=105, help="transfer: steps")
    parser.add_argument("--block-steps", type=int, default=35, help="transfer: steps between judgements")
    parser.add_argument("--batch-size", type=int, default=4, help="transfer: fields of view in a step")
    parser.add_argument("--learning-rate", type=float, default=5e-5, help="transfer: highest learning rate")
    parser.add_argument(
        "--fov-moves", type=int, default=1, help="transfer: moves of a patch; 0 takes a seventh of the time"
    )
    parser.add_argument("--trained-modules", type=int, default=2, help="transfer: last modules that are trained")
    parser.add_argument("--threads", type=int, default=2, help="transfer: threads of a step")
    parser.add_argument("--validation-patches", type=int, default=12, help="transfer: patches of a judgement")
    parser.add_argument("--test-patches", type=int, default=24, help="transfer: patches of the test half")
    parser.add_argument("--crop", type=int, default=112, help="transfer: edge of the crop that is segmented; 0: none")
    parser.add_argument("--scratch-steps", type=int, default=1500, help="scratch: steps")
    parser.add_argument("--store", help="folder to work in, goes on where it was killed; default: a temporary one")
    parser.add_argument("--out", type=Path, help="write all figures to this file")
    options = parser.parse_args()
    report: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for part in options.parts:
            store = Store(f"{options.store or folder}/{part}")
            report[part] = PARTS[part](store, options)
            print(json.dumps({"part": part, **report[part]}), flush=True)
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
