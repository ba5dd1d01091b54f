"""Training through the job interface: it learns, goes on after SIGKILL to the same bytes, and keeps the best."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from happyneurons.acquisition.phantom import make_phantom
from happyneurons.errors import UserError
from happyneurons.ffn.model import Model, load_model, save_model
from happyneurons.ffn.training import TrainingOptions, learning_rate
from happyneurons.jobs.spec import make_spec, save_spec
from happyneurons.stages import load_stage
from happyneurons.store.documents import Store
from happyneurons.store.volumes import create_volume
from happyneurons.training.blocks import average, best_row, saturated
from happyneurons.worker.local import run_stage
from happyneurons.worker.run import RunOptions
from tests.stages.attempts import files, run_with_ranks

SMALL: dict[str, Any] = {
    "depth": 2, "features": 4, "fov_xyz": [11, 11, 9], "deltas_xyz": [3, 3, 2], "fov_moves": 0, "steps": 30,
    "block_steps": 10, "batch_size": 2, "shards": 2, "validation_patches": 4, "warmup_steps": 5, "learning_rate": 0.01,
}  # fmt: skip


def put(root: Path, name: str, array: np.ndarray, voxel_size: tuple[float, float, float] = (8.0, 8.0, 8.0)) -> str:
    uri = Store(str(root)).url(name)
    volume = create_volume(
        uri,
        start_zyx=(0, 0, 0),
        stop_zyx=array.shape,
        voxel_size_nm_xyz=voxel_size,
        dtype=str(array.dtype),
        layer_type="image" if array.dtype == np.uint8 else "segmentation",
        chunk_zyx=(32, 32, 32),
    )
    volume.write((0, 0, 0), array)
    return uri


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """URIs of a phantom's image and labels."""
    root, phantom = tmp_path_factory.mktemp("volumes"), make_phantom((32, 64, 80), seed=9)
    return {"image": [put(root, "image", phantom.image)], "labels": [put(root, "labels", phantom.labels)]}


class KillAt(logging.Handler):
    """Ends this process with SIGKILL when a message is logged."""

    def __init__(self, words: str) -> None:
        super().__init__()
        self._words = words

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().startswith(self._words):
            os.kill(os.getpid(), signal.SIGKILL)


def train_here(folders: list[str], inputs: dict[str, list[str]], params: dict[str, Any], kill: str = "") -> None:
    """Run the stage in each of the stores; with `kill`, this process dies at that message."""
    if kill:
        logging.getLogger("happyneurons").addHandler(KillAt(kill))
    for folder in folders:
        run_stage(Store(folder), "ffn-train", inputs=inputs, params=params, options=RunOptions(takeover=True))


def in_new_process(*arguments: Any) -> int:
    code = (
        "import importlib.util, json, sys;"
        f"s = importlib.util.spec_from_file_location('t', {__file__!r}); m = importlib.util.module_from_spec(s);"
        "s.loader.exec_module(m); m.train_here(*json.loads(sys.argv[1]))"
    )
    return subprocess.run([sys.executable, "-c", code, json.dumps(arguments)], check=False).returncode


@pytest.mark.slow
def test_two_shards_killed_in_the_middle_or_on_two_ranks_end_with_the_same_bytes(
    tmp_path: Path, pair: dict[str, list[str]]
) -> None:
    killed, undisturbed, two_ranks = (Store(str(tmp_path / name)) for name in ("killed", "undisturbed", "two_ranks"))
    spec = make_spec(load_stage("ffn-train"), inputs=pair, params=SMALL)
    # The first shard of the second block is written but not in the journal, the second one is not begun.
    assert in_new_process([killed.uri], pair, SMALL, "step 20 of 30, shard 0") == -signal.SIGKILL
    left = [path.split("/", 1)[-1] for path in files(killed, spec.key)]
    assert "checkpoints/00000010/mean.npz" in left
    assert "checkpoints/00000020/shard-0001.npz" not in left
    assert "history.json" in left
    assert in_new_process([killed.uri, undisturbed.uri], pair, SMALL) == 0
    assert files(killed, spec.key) == files(undisturbed, spec.key)
    save_spec(two_ranks, spec)
    run_with_ranks(two_ranks, spec, 2)
    assert files(two_ranks, spec.key) == files(undisturbed, spec.key)
    found = {path.split("/", 1)[-1]: data for path, data in files(killed, spec.key).items()}
    samples = [f"samples/{step:08d}.png" for step in (10, 20, 30)]
    assert sorted(found) == ["curves.png", "history.json", "model.json", *samples, "weights.npz"]
    history = json.loads(found["history.json"])
    assert [row["step"] for row in history] == [10, 20, 30]
    assert history[-1]["loss"] < 0.8 * history[0]["loss"]
    model = json.loads(found["model.json"])
    assert model["training"]["figures"] == max(history, key=lambda row: row["f1"])
    assert model["training"]["voxel_size_nm_xyz"] == [8.0, 8.0, 8.0]


@pytest.mark.slow
def test_training_that_spoils_a_model_gives_the_model_back(store: Store, pair: dict[str, list[str]]) -> None:
    demo = str(Path(__file__).resolve().parents[2] / "services" / "happyneurons" / "models" / "demo_ffn")
    params = {
        "steps": 4, "block_steps": 1, "batch_size": 1, "learning_rate": 0.2, "warmup_steps": 0, "fov_moves": 0,
        "fov_xyz": [15, 15, 15], "deltas_xyz": [4, 4, 4], "validation_fraction": 0.45, "validation_axis": "x",
        "validation_patches": 2, "patience_blocks": 1, "augmentation": {"jitter_px": 0},
    }  # fmt: skip
    manifest = run_stage(store, "ffn-train", inputs={**pair, "initial_model": [demo]}, params=params)
    metrics = manifest.metrics
    assert (metrics["best_step"], metrics["step"]) == (0, 1), "it stops after a block that is no better"
    assert metrics["f1"] == metrics["initial_f1"] > 0.5
    trained, before = load_model(manifest.outputs["model"].data_uri), load_model(demo)
    changed = {"fov_zyx": (15, 15, 15), "deltas_zyx": (4, 4, 4)}
    assert trained.architecture == before.architecture.model_copy(update=changed)
    for name, array in before.weights.items():
        np.testing.assert_array_equal(trained.weights[name], array)
    history = Store(manifest.outputs["model"].data_uri).get_json("history.json")
    assert [row["step"] for row in history] == [0, 1]


@pytest.mark.slow
def test_only_the_last_modules_are_trained_if_so_asked(store: Store, pair: dict[str, list[str]]) -> None:
    first = run_stage(store, "ffn-train", inputs=pair, params={**SMALL, "steps": 1, "block_steps": 1})
    initial = first.outputs["model"]
    params = {**SMALL, "depth": None, "features": None, "trained_modules": 1, "patience_blocks": 100}
    inputs = {**pair, "initial_model": [initial.uri]}
    manifest = run_stage(store, "ffn-train", inputs=inputs, params={**params, "augmentation": {"jitter_px": 0}})
    assert manifest.metrics["best_step"] > 0, "it learned something"
    before, after = load_model(initial.data_uri).weights, load_model(manifest.outputs["model"].data_uri).weights
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert {name.split("/")[0] for name in changed} == {"conv1_a", "conv1_b", "conv_lom"}


def test_wrong_input_is_refused_with_the_reason(store: Store, tmp_path: Path, pair: dict[str, list[str]]) -> None:
    def refused(words: str, inputs: dict[str, list[str]] | None = None, **params: Any) -> None:
        with pytest.raises(UserError, match=words):
            run_stage(store, "ffn-train", inputs={**pair, **(inputs or {})}, params={**SMALL, **params})

    array = np.ones((32, 64, 80), np.uint8)
    coarse = put(tmp_path, "coarse", array, (16.0, 16.0, 16.0))
    flat = put(tmp_path, "flat", array, (8.0, 8.0, 40.0))
    flat_labels = put(tmp_path, "flat_labels", array.astype(np.uint64), (8.0, 8.0, 40.0))
    nothing = put(tmp_path, "nothing", 0 * array.astype(np.uint64))
    far = Store(str(tmp_path)).url("far")
    create_volume(
        far, start_zyx=(100, 0, 0), stop_zyx=(132, 64, 80), voxel_size_nm_xyz=(8, 8, 8), dtype="uint64",
        layer_type="segmentation",
    )  # fmt: skip
    refused("pairs", {"labels": [*pair["labels"], *pair["labels"]]})
    refused("no voxels in common", {"labels": [far]})
    refused("image and labels differ in voxel size", {"image": [coarse]})
    refused("volumes differ in voxel size", {"image": [*pair["image"], flat], "labels": [*pair["labels"], flat_labels]})
    refused("hold no object", {"labels": [nothing]})
    refused("too small for a patch", fov_xyz=[31, 31, 31])
    refused("too small for a patch", validation_fraction=0.1)
    refused("deltas_xyz: .*at most half", deltas_xyz=[9, 9, 9])
    cubes = {"permute_axes": "xyz"}
    refused("needs cubic voxels", {"image": [flat], "labels": [flat_labels]}, augmentation=cubes)
    held_out = {"validation_image": pair["image"], "validation_labels": pair["labels"]}
    refused("not both", held_out, validation_fraction=0.3)
    refused("keeps the other modules of an initial model", trained_modules=1)

    other = Store(str(tmp_path / "model"))
    demo = load_model(str(Path(__file__).resolve().parents[2] / "services" / "happyneurons" / "models" / "demo_ffn"))
    save_model(other, Model(demo.architecture, demo.weights, {"voxel_size_nm_xyz": [16.0, 16.0, 16.0]}))
    refused("the initial model has depth 6, params.depth asks for 2", {"initial_model": [other.uri]})
    same = {"depth": None, "features": None, "fov_xyz": None, "deltas_xyz": [5, 5, 5]}
    refused("was trained on voxels of", {"initial_model": [other.uri]}, **same, augmentation={"jitter_px": 0})


def test_the_mean_of_shards_and_when_training_stops() -> None:
    states = [
        {"w": np.float32([1, 2]), "optimizer/000": np.int64(7)},
        {"w": np.float32([3, 6]), "optimizer/000": np.int64(7)},
    ]
    mean = average(states)
    np.testing.assert_array_equal(mean["w"], np.float32([2, 4]))
    assert mean["w"].dtype == np.float32
    assert mean["optimizer/000"] == 7
    options = TrainingOptions(patience_blocks=2, minimum_gain=0.01)

    def rows(*scores: float) -> list[dict[str, float]]:
        return [{"step": float(i), "f1": f1} for i, f1 in enumerate(scores)]

    assert not saturated(rows(0.5, 0.6, 0.6), options, "f1")
    assert saturated(rows(0.5, 0.6, 0.6, 0.605), options, "f1")
    assert not saturated(rows(0.5, 0.6, 0.6, 0.62), options, "f1")
    assert best_row(rows(0.5, 0.7, 0.6, 0.7), "f1")["step"] == 1
    assert max(learning_rate(options, s) for s in range(5000)) > 10 * max(
        learning_rate(options, s, fine_tuning=True) for s in range(5000)
    )
