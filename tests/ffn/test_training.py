"""Training: it learns, it resumes to the same bytes after SIGKILL, its examples are what they should be."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from happyneurons.acquisition.phantom import make_phantom
from happyneurons.errors import UserError
from happyneurons.ffn.architecture import Architecture
from happyneurons.ffn.augmentation import Augmentation, augment
from happyneurons.ffn.examples import PatchSource
from happyneurons.ffn.sampling import PARTITIONS, BalancedSampler, TrainingVolume, active_fractions
from happyneurons.ffn.training import TrainingOptions, train
from happyneurons.store.documents import Store

ARCHITECTURE = Architecture(
    depth=3, features=6, fov_zyx=(13, 13, 13), deltas_zyx=(3, 3, 3), image_mean=135, image_stddev=40
)
OPTIONS = TrainingOptions(
    steps=60, block_steps=20, batch_size=4, validation_patches=4, warmup_steps=10, learning_rate=3e-3
)


def phantom_volume() -> TrainingVolume:
    phantom = make_phantom((32, 64, 64), seed=3)
    return TrainingVolume(ARCHITECTURE.normalize(phantom.image), phantom.labels.astype(np.int32))


def run_training(folder: Path, *, kill_at: int = 0) -> None:
    """Train into a folder; with `kill_at`, this process kills itself after that checkpoint."""

    def after_block(step: int) -> None:
        if step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    store = Store(str(folder))
    weights, history = train(
        ARCHITECTURE, [phantom_volume()], OPTIONS, Augmentation(), store, threads=1, after_block=after_block
    )
    store.put_arrays("weights.npz", **weights)
    store.put_json("history.json", history)


def in_new_process(folder: Path, kill_at: int = 0) -> int:
    code = (
        "import importlib.util, pathlib;"
        f"s = importlib.util.spec_from_file_location('t', {__file__!r}); m = importlib.util.module_from_spec(s);"
        f"s.loader.exec_module(m); m.run_training(pathlib.Path({str(folder)!r}), kill_at={kill_at})"
    )
    return subprocess.run([sys.executable, "-c", code], check=False).returncode


def test_training_learns_and_resumes_after_sigkill_to_the_same_bytes(tmp_path: Path) -> None:
    assert in_new_process(tmp_path / "undisturbed") == 0
    assert in_new_process(tmp_path / "killed", kill_at=20) == -signal.SIGKILL
    store = Store(str(tmp_path / "killed"))
    assert store.get_json("checkpoint.json")["step"] == 20
    assert not store.exists("weights.npz")
    assert in_new_process(tmp_path / "killed") == 0
    undisturbed = Store(str(tmp_path / "undisturbed"))
    for path in ("weights.npz", "history.json"):
        assert store.get(path) == undisturbed.get(path)
    history = undisturbed.get_json("history.json")
    assert [row["step"] for row in history] == [20, 40, 60]
    assert history[-1]["loss"] < 0.75 * history[0]["loss"]


def test_coordinates_are_balanced_between_thin_and_thick(tmp_path: Path) -> None:
    labels = np.zeros((24, 64, 64), np.int32)
    labels[:, 10:50, 10:50] = 1  # fills the field of view
    labels[:, 57, 20:40] = 2  # a sheet of one voxel
    volume = TrainingVolume(np.zeros(labels.shape, np.float32), labels)
    sampler = BalancedSampler([volume], (9, 9, 9), (4, 4, 4), seed=1)
    rng = np.random.default_rng(0)
    drawn = np.array([sampler.draw(rng)[1] for _ in range(600)])
    kinds = labels[tuple(drawn.T)]
    assert (kinds > 0).all()
    inside = (labels[4:-4, 4:-4, 4:-4] == 2).sum() / (labels[4:-4, 4:-4, 4:-4] > 0).sum()
    assert (kinds == 2).mean() > 5 * inside
    fractions = active_fractions(labels, np.array([[12, 30, 30], [12, 57, 30]]), (9, 9, 9))
    np.testing.assert_allclose(fractions, [1.0, 1 / 9])
    assert np.digitize(fractions, PARTITIONS).tolist() == [10, 4]


def test_too_small_or_empty_volumes_are_refused() -> None:
    empty = TrainingVolume(np.zeros((24, 24, 24), np.float32), np.zeros((24, 24, 24), np.int32))
    with pytest.raises(UserError, match="too small"):
        BalancedSampler([empty], (25, 9, 9), (4, 4, 4), seed=1)
    with pytest.raises(UserError, match="no object"):
        BalancedSampler([empty], (9, 9, 9), (4, 4, 4), seed=1)


def test_augmented_labels_stay_on_the_picture() -> None:
    labels = np.zeros((21, 40, 40), bool)
    labels[:, 12:25, 15:30] = True
    image = np.where(labels, np.float32(1), np.float32(-1))
    settings = Augmentation(noise=0, blur_px=0, missing=0, contrast=0, brightness=0, jitter_px=2)
    for seed in range(20):
        out, wanted = augment(image, labels, settings, np.random.default_rng(seed))
        assert out.shape == wanted.shape == (21, 30, 30)
        # Sections move by fractions of a pixel, labels by whole ones: only the outline may differ.
        assert ((out > 0) != wanted).mean() < 0.06
        assert wanted[10].any()


def test_patches_start_from_an_empty_mask_with_a_seed_on_their_object() -> None:
    source = PatchSource([phantom_volume()], ARCHITECTURE, fov_moves=1, augmentation=Augmentation(), seed=1)
    for seed in range(20):
        patch = source.draw(np.random.default_rng(seed))
        assert patch.image.shape == patch.wanted.shape == (19, 19, 19)
        assert patch.wanted[patch.centre]
        assert (patch.seed > 0).sum() == 1
        assert patch.seed[patch.centre] > 2.9
