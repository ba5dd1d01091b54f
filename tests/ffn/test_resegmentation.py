"""Resegmentation of pairs, with network stand-ins whose results are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from happyneurons.ffn.architecture import Architecture
from happyneurons.ffn.options import InferenceOptions
from happyneurons.ffn.resegmentation import PairResegmentation, nearest_piece

OPTIONS = InferenceOptions(skip_explored_fraction=0.05)
SIDE = 31
MIDDLE = (SIDE // 2,) * 3


class SameGrey:
    """The object is what has the grey value of the field of view's centre."""

    def __init__(self) -> None:
        self.architecture = Architecture(
            depth=2, features=1, fov_zyx=(9, 9, 9), deltas_zyx=(3, 3, 3), image_mean=0, image_stddev=1
        )
        distance = np.sqrt(sum((axis - 4) ** 2 for axis in np.indices((9, 9, 9))))
        self._inside = (5 - distance / 10).astype(np.float32)  # falls off, so that faces are left straight ahead
        self.calls = 0

    def __call__(self, image: np.ndarray, seed: np.ndarray) -> np.ndarray:
        self.calls += 1
        return np.where(np.abs(image - image[4, 4, 4]) < 0.5, self._inside, np.float32(-4))


def tubes() -> tuple[np.ndarray, np.ndarray]:
    """Two tubes along x, of grey values 50 and 90, that touch at y = 15; labels 1 and 3."""
    image = np.full((SIDE,) * 3, 10, np.float32)
    labels = np.zeros((SIDE,) * 3, np.uint32)
    image[10:21, 4:15], labels[10:21, 4:15] = 50, 1
    image[10:21, 15:27], labels[10:21, 15:27] = 90, 3
    return image, labels


def cut(labels: np.ndarray, x: int, new: int = 2) -> np.ndarray:
    """The part of tube 1 from x on becomes another segment."""
    labels = labels.copy()
    labels[:, :, x:][labels[:, :, x:] == 1] = new
    return labels


def pair(
    image: np.ndarray, labels: np.ndarray, a: int, b: int, step: SameGrey | None = None, **more: Any
) -> PairResegmentation:
    return PairResegmentation(image, labels, a, b, MIDDLE, step or SameGrey(), OPTIONS, **more)


def test_both_floods_recover_both_halves_of_a_tube() -> None:
    image, labels = tubes()
    step = SameGrey()
    scores = pair(image, cut(labels, 15), 1, 2, step).scores()
    assert scores.from_a is not None
    assert scores.from_b is not None
    for flood in (scores.from_a, scores.from_b):
        assert flood.own > 0.95
        assert flood.other > 0.9
        assert (flood.deleted, flood.leaked) == (0.0, 0.0)
    assert scores.iou is not None
    assert scores.iou > 0.9
    assert scores.steps == step.calls
    assert (scores.voxels_a, scores.voxels_b) == (11 * 11 * 12, 11 * 11 * 13)  # without a rim of 3


def test_a_border_stops_both_floods() -> None:
    image, labels = tubes()
    scores = pair(image, labels, 1, 3).scores()
    assert scores.from_a is not None
    assert scores.from_b is not None
    assert scores.from_a.own > 0.95
    assert scores.from_a.other == scores.from_b.other == 0.0
    assert scores.iou == 0.0


def test_the_second_flood_is_saved_where_the_first_one_decides() -> None:
    image, labels = tubes()
    scores = pair(image, labels, 1, 3).scores(skip_below=0.1)
    assert scores.from_a is not None  # 11 of 23 voxels wide: the smaller one
    assert scores.from_b is None
    assert scores.iou is None
    scores = pair(image, labels, 1, 3).scores(first="b", skip_below=0.1)
    assert scores.from_a is None


def test_other_segments_are_obstacles() -> None:
    """1 and 2 are one tube, but 7 lies between them: neither flood gets past it."""
    image, labels = tubes()
    labels = cut(cut(labels, 12, 7), 19)
    labels[:, :, 19:][labels[:, :, 19:] == 7] = 2
    scores = pair(image, labels, 1, 2).scores()
    assert scores.from_a is not None
    assert scores.from_b is not None
    assert scores.from_a.own > 0.9
    assert scores.from_a.other == scores.from_b.other == 0.0
    assert scores.from_a.leaked > 0.1  # it saw more of the object than it was allowed to have


def test_a_seed_that_leads_nowhere_is_followed_by_another() -> None:
    """At the deepest place of segment 1 lies a body of another grey value, as a mitochondrion would."""
    image, labels = tubes()
    labels = cut(labels, 15)
    image[13:18, 7:12, 2:7] = 70
    once = pair(image, labels, 1, 2, attempts=1).flood("a")
    twice = pair(image, labels, 1, 2, attempts=2).flood("a")
    assert once is not None
    assert twice is not None
    assert once[0].own < 0.1
    assert twice[0].own > 0.8
    assert twice[0].other > 0.9
    assert twice[0].steps > once[0].steps


def test_what_steps_take_back_is_counted() -> None:
    image, labels = tubes()

    class Undecided(SameGrey):
        def __call__(self, image: np.ndarray, seed: np.ndarray) -> np.ndarray:
            logits = super().__call__(image, seed)
            if self.calls == 2:
                logits[:, :, :2] = -4  # 2 of 9 planes
            return logits

    plain, undecided = (pair(image, cut(labels, 15), 1, 2, step).flood("a") for step in (SameGrey(), Undecided()))
    assert plain is not None
    assert undecided is not None
    assert plain[0].deleted == 0
    assert undecided[0].deleted > 0


def test_excluded_voxels_have_no_seeds_and_nothing_is_found_in_them() -> None:
    image, labels = tubes()
    labels = cut(labels, 15)
    excluded = np.zeros(labels.shape, bool)
    excluded[:, :, 15:] = True
    request = pair(image, labels, 1, 2, excluded=excluded)
    assert request.flood("b") is None
    flood = request.flood("a")
    assert flood is not None
    assert flood[0].own > 0.95
    assert flood[0].other == 0.0
    assert not flood[1][excluded].any()
    assert request.scores().iou is None


def test_the_piece_at_the_decision_point_is_judged() -> None:
    mask = np.zeros((SIDE,) * 3, bool)
    mask[12:16, 12:16, 12:16] = True  # 64 voxels around the middle
    mask[:, :, 25:] = True  # many more, but farther
    assert nearest_piece(mask, MIDDLE, (1.0, 1.0, 1.0)).sum() == 64
    # Anisotropic voxels: what is near in voxels may be far in space.
    mask = np.zeros((SIDE,) * 3, bool)
    mask[20], mask[:, :, 25:] = True, True
    mask[20, :, 22:], mask[18:23, :, 25:] = False, False
    assert nearest_piece(mask, MIDDLE, (10.0, 1.0, 1.0))[15, 15, 25]
    assert nearest_piece(mask, MIDDLE, (1.0, 1.0, 1.0))[20, 15, 15]
    with pytest.raises(ValueError, match="does not occur"):
        nearest_piece(np.zeros((3, 3, 3), bool), (1, 1, 1), (1.0, 1.0, 1.0))
