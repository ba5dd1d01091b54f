"""From what the floods recovered to a decision about one pair.

Rules. Both ways: each of the two floods recovers at least `min_recovered` of the other segment,
the two objects are nearly the same (`min_iou`), and the network took little back
(`max_deleted`). The score is the smaller of the two shares.

Small fragments get a gentler rule, for a flood that starts inside a fragment of a few thousand
voxels has little to go by, and many have no room for a seed at all: the flood from the larger
segment alone is enough, if it recovers `small_min_recovered` of the fragment. The score is then
that share.

A piece of fewer than `min_piece_voxels` near the decision point decides nothing: a flood that is a
little thicker than the segment takes in any sliver beside it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from happyneurons.ffn.resegmentation import PairScores


@dataclass(frozen=True)
class Rules:
    min_recovered: float
    min_iou: float
    max_deleted: float
    small_voxels: int
    small_min_recovered: float
    min_piece_voxels: int


class Verdict(NamedTuple):
    """score: 0 to 1. one_sided: merged by the flood from the larger segment alone."""

    score: float
    merge: bool
    reason: str
    one_sided: bool = False


FIGURES = ("a_from_a", "b_from_a", "a_from_b", "b_from_b", "iou", "deleted_a", "deleted_b", "leaked_a", "leaked_b")
"""Shares by pair; X_from_Y: of segment X, recovered by the flood from Y. NaN: that flood was not run."""
COUNTS = ("piece_a", "piece_b", "steps")
"""Voxels of the judged pieces in the middle of the box, and network calls."""


def figures(scores: PairScores) -> dict[str, float]:
    """The figures of one pair by name; NaN where there is none."""
    nan = float("nan")
    a, b = scores.from_a, scores.from_b
    return {
        "a_from_a": a.own if a else nan,
        "b_from_a": a.other if a else nan,
        "a_from_b": b.other if b else nan,
        "b_from_b": b.own if b else nan,
        "iou": nan if scores.iou is None else scores.iou,
        "deleted_a": a.deleted if a else nan,
        "deleted_b": b.deleted if b else nan,
        "leaked_a": a.leaked if a else nan,
        "leaked_b": b.leaked if b else nan,
        "piece_a": scores.voxels_a,
        "piece_b": scores.voxels_b,
        "steps": scores.steps,
    }


def judge(f: Mapping[str, Any], voxels: tuple[int, int], rules: Rules) -> Verdict:
    """The verdict about one pair. f: see FIGURES, COUNTS; voxels: of both segments in the whole volume."""
    if min(f["piece_a"], f["piece_b"]) < rules.min_piece_voxels:
        return Verdict(0.0, False, f"a piece of fewer than {rules.min_piece_voxels} voxels at the decision point")
    verdict = _both_ways(f, rules)
    if not verdict.merge and min(voxels) < rules.small_voxels:
        # The larger one speaks; of two equal ones the first.
        name, share, deleted = ("a", f["b_from_a"], f["deleted_a"])
        if voxels[1] > voxels[0]:
            name, share, deleted = ("b", f["a_from_b"], f["deleted_b"])
        if share >= rules.small_min_recovered and deleted <= rules.max_deleted:
            return Verdict(share, True, f"the flood from {name} recovers the small segment", one_sided=True)
    return verdict


def _both_ways(f: Mapping[str, Any], rules: Rules) -> Verdict:
    forth, back = f["b_from_a"], f["a_from_b"]
    ran = [share for share in (forth, back) if not math.isnan(share)]
    if not ran:
        return Verdict(0.0, False, "the field of view fits into neither segment")
    score = min(ran) if len(ran) == 2 else 0.0
    if min(ran) < rules.min_recovered:
        name = "a" if forth == min(ran) else "b"
        return Verdict(score, False, f"the flood from {name} does not recover the other segment")
    if len(ran) < 2:
        return Verdict(score, False, "only one of the two segments could be flooded from")
    if f["iou"] < rules.min_iou:
        return Verdict(score, False, "the two floods differ")
    if max(f["deleted_a"], f["deleted_b"]) > rules.max_deleted:
        return Verdict(score, False, "the network took back too much")
    return Verdict(score, True, "both floods recover both segments")
