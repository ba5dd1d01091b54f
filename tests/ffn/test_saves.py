"""A half segmented subvolume is saved: what interrupts it costs no result and hardly any work."""

from __future__ import annotations

import errno

import numpy as np
import pytest

from happyneurons.errors import DrainedError
from happyneurons.ffn.canvas import Step
from happyneurons.ffn.checkpoint import CanvasCheckpoint
from happyneurons.ffn.inference import NO_FACES, SubvolumeSegmentation, segment_subvolume
from happyneurons.ffn.obstacles import Obstacles
from happyneurons.ffn.options import InferenceOptions
from happyneurons.store.documents import Store

from .test_inference import Neighbourhood, blocks_image

OPTIONS = InferenceOptions(skip_explored_fraction=0, min_segment_size=500)


class Failing(Neighbourhood):
    """Raises at its n-th call."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self._at = at

    def __call__(self, image: np.ndarray, seed: np.ndarray) -> np.ndarray:
        if self.calls == self._at:
            raise OSError(errno.EIO, "the node is gone")
        return super().__call__(image, seed)


def blocks_result(
    step: Step, checkpoint: CanvasCheckpoint | None = None, options: InferenceOptions = OPTIONS
) -> SubvolumeSegmentation:
    given = np.zeros((24, 40, 64), np.uint32)
    given[8:16, 26:31, 20:30] = 9
    faces = ((True, True), NO_FACES[1], (False, True))
    return segment_subvolume(
        blocks_image(), step, options, mirrored=faces, obstacles=Obstacles.of(given), checkpoint=checkpoint
    )  # fmt: skip


def equal(a: SubvolumeSegmentation, b: SubvolumeSegmentation) -> bool:
    return a.segmentation.tobytes() == b.segmentation.tobytes() and a.counters == b.counters


@pytest.mark.parametrize("skip", [0.0, 0.3])
def test_interrupted_anywhere_the_result_is_the_same_and_little_is_done_again(store: Store, skip: float) -> None:
    options = OPTIONS.model_copy(update={"skip_explored_fraction": skip})
    whole = Neighbourhood()
    undisturbed = blocks_result(whole, options=options)
    if skip:
        assert undisturbed.counters["fov_revisited"] > 0
    for at in range(1, whole.calls, whole.calls // 5):
        path, first, again = f"checkpoints/{at}.npz", Failing(at), Neighbourhood()

        def saves(path: str, step: Neighbourhood) -> CanvasCheckpoint:
            return CanvasCheckpoint(store, path, 40, clock=lambda: step.calls)

        with pytest.raises(OSError, match="node is gone"):
            blocks_result(first, saves(path, first), options)
        checkpoint = saves(path, again)
        assert equal(blocks_result(again, checkpoint, options), undisturbed)
        assert again.calls == whole.calls - at // 40 * 40  # all but what came after the last save
        checkpoint.remove()
        assert not store.exists(path)


def test_asked_to_stop_again_and_again_within_one_object_it_goes_on_each_time(store: Store) -> None:
    whole = Neighbourhood()
    undisturbed = blocks_result(whole)
    seeds, calls = set(), 0
    for budget in (700, 30, 30, 30):
        step = Neighbourhood()
        stops = CanvasCheckpoint(
            store, "c.npz", float("inf"), stop=lambda step=step, budget=budget: step.calls >= budget
        )
        with pytest.raises(DrainedError, match=r"stopped after \d+ of \d+ seeds"):
            blocks_result(step, stops)
        assert step.calls == budget
        calls += budget
        seeds.add(int(store.get_arrays("c.npz")["next_seed"]))
    assert len(seeds) == 1, "the object is larger than 30 steps"
    step = Neighbourhood()
    assert equal(blocks_result(step, CanvasCheckpoint(store, "c.npz", float("inf"))), undisturbed)
    assert step.calls == whole.calls - calls


def test_saves_keep_their_interval(store: Store) -> None:
    now = [0.0]
    saves = []

    class Watched(Store):
        def put(self, path: str, data: bytes) -> None:
            saves.append(now[0])
            super().put(path, data)

    class Slow(Neighbourhood):
        def __call__(self, image: np.ndarray, seed: np.ndarray) -> np.ndarray:
            now[0] += 1
            return super().__call__(image, seed)

    blocks_result(Slow(), CanvasCheckpoint(Watched(store.uri), "c.npz", 20, clock=lambda: now[0]))
    assert len(saves) >= 2
    assert min(np.diff([0.0, *saves])) >= 20


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 cut off", b"not an archive"])
def test_a_damaged_save_costs_work_but_no_result(store: Store, damage: bytes) -> None:
    store.put("c.npz", damage)
    assert equal(blocks_result(Neighbourhood(), CanvasCheckpoint(store, "c.npz", 10)), blocks_result(Neighbourhood()))
