"""Train the small network that `hpn demo` segments with, on phantoms that the demo does not use.

    python examples/train_demo_model.py --work /tmp/demo-model [--output services/happyneurons/models/demo_ffn]

Makes phantoms for training and one for validation, runs the stage ffn-train on them in this process
and copies the model to --output. Killed and started again, it goes on from the last checkpoint.
--phases 2 trains on from there on five more phantoms.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import numpy as np

from happyneurons.acquisition.phantom import make_phantom
from happyneurons.errors import NotFoundError
from happyneurons.store.artifacts import load_artifact
from happyneurons.store.documents import Store
from happyneurons.store.volumes import PrecomputedVolume, create_volume
from happyneurons.worker.local import run_stage

SHAPE_ZYX = (64, 192, 192)
TRAINING_SEEDS = ((1, 2, 3, 4, 5), (11, 12, 13, 14, 15))  # by phase
VALIDATION_SEED = 6  # the demo's own phantom has seed 7
CLAHE = {3: (2.0, 3), 5: (3.0, 4), 13: (2.0, 3), 15: (3.0, 4)}
"""Phantoms shown as the stage normalize would leave them: seed → clip limit, tiles a side."""

PARAMS = {
    "depth": 6,
    "features": 16,
    "fov_xyz": [21, 21, 21],
    "deltas_xyz": [6, 6, 6],
    "image_mean": 132.0,
    "image_stddev": 40.0,
    "steps": 8000,
    "block_steps": 400,
    "batch_size": 8,
    "patience_blocks": 1000,  # all steps, whatever the curve
}
PHASES = ({"learning_rate": 1e-3, "seed": 1}, {"learning_rate": 8e-4, "seed": 2})


def phantom_volumes(store: Store, seed: int) -> tuple[str, str]:
    """URIs of a phantom's image and labels in the store; made if they are not there."""
    uris = store.url(f"phantoms/{seed}/image"), store.url(f"phantoms/{seed}/labels")
    try:
        PrecomputedVolume(uris[0])
        if store.exists(f"phantoms/{seed}/done"):
            return uris
    except NotFoundError:
        pass
    phantom = make_phantom(SHAPE_ZYX, seed=seed)
    image = clahe(phantom.image, *CLAHE[seed]) if seed in CLAHE else phantom.image
    for uri, array, kind in zip(uris, (image, phantom.labels), ("image", "segmentation"), strict=True):
        volume = create_volume(
            uri,
            start_zyx=(0, 0, 0),
            stop_zyx=SHAPE_ZYX,
            voxel_size_nm_xyz=phantom.voxel_size_nm_xyz,
            dtype=str(array.dtype),
            layer_type="image" if kind == "image" else "segmentation",
        )
        volume.write((0, 0, 0), array)
    store.put(f"phantoms/{seed}/done", b"")
    return uris


def clahe(image: np.ndarray, clip_limit: float, tiles: int) -> np.ndarray:
    """Contrast-limited adaptive histogram equalization of every section."""
    import cv2

    equalize = cv2.createCLAHE(clip_limit, (tiles, tiles))
    return np.stack([equalize.apply(section) for section in image])


def train(store: Store, phase: int, initial: str | None) -> str:
    """URI of the model that a phase ends with."""
    pairs = [phantom_volumes(store, seed) for seed in TRAINING_SEEDS[phase]]
    image, labels = phantom_volumes(store, VALIDATION_SEED)
    inputs = {
        "image": [pair[0] for pair in pairs],
        "labels": [pair[1] for pair in pairs],
        "validation_image": [image],
        "validation_labels": [labels],
    }
    if initial:
        inputs["initial_model"] = [initial]
    manifest = run_stage(store, "ffn-train", inputs=inputs, params={**PARAMS, **PHASES[phase]})
    return manifest.outputs["model"].uri


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", required=True, help="store (URI or folder) for phantoms, checkpoints and the job")
    parser.add_argument("--output", default="services/happyneurons/models/demo_ffn", help="folder for the model")
    parser.add_argument("--phases", type=int, choices=range(1, len(PHASES) + 1), default=1, help="default: 1")
    parser.add_argument("--first", help="model to take as the first phase's result")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    store = Store(arguments.work)
    model = arguments.first
    for phase in range(1 if model else 0, arguments.phases):
        model = train(store, phase, model)
    source = load_artifact(model).store()
    output = Path(arguments.output)
    output.mkdir(parents=True, exist_ok=True)
    for name in ("model.json", "weights.npz", "history.json"):
        (output / name).write_bytes(source.get(name))
    print(f"{output}: {source.get_json('history.json')[-1]}")


if __name__ == "__main__":
    main()
