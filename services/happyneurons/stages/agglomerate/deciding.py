"""The table of decisions: scores, reviews and guards come together.

`scores.npz` keeps what the network said, so that a later job can decide again, by other thresholds or
after a review, without asking it again; `scoring.json` says what the scores were made from.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from happyneurons.errors import NotFoundError, UserError
from happyneurons.jobs.stage import Context
from happyneurons.stages.agglomerate.candidates import Segments
from happyneurons.stages.agglomerate.joining import Pair, join
from happyneurons.stages.agglomerate.judging import COUNTS, FIGURES, Verdict, judge
from happyneurons.stages.agglomerate.reviews import Reviews, read_reviews
from happyneurons.store.documents import Store

if TYPE_CHECKING:
    from happyneurons.stages.agglomerate.stage import AgglomerateParams

Arrays = dict[str, np.ndarray]
Portions = Callable[[], Iterable[tuple[Arrays, Arrays | None]]]

COLUMNS = (
    "segment_a", "segment_b", "x", "y", "z", "voxels_a", "voxels_b", "faces", *FIGURES, *COUNTS,
    "score", "decision", "reason", "joined_id", "review",
)  # fmt: skip
"""decision: merge or keep; joined_id: id of both after agglomeration, empty if they stay apart."""

_NOT_ASKED = "not scored: its task was given up"


def identity(context: Context[Any]) -> dict[str, Any]:
    """What scores depend on: inputs by digest, and the parameters that have to do with scoring."""
    given = ((name, context.optional_input(name)) for name in ("image", "segmentation", "model", "mask"))
    inputs = {name: artifact.digest for name, artifact in given if artifact is not None}
    return {"inputs": inputs, "params": context.params.scoring()}


def check_scored(context: Context[Any]) -> None:
    """Raise UserError if the scores given as input were not made from the same things."""
    scored = context.optional_input("scored")
    if scored is None:
        return
    try:
        made = scored.store().get_json("scoring.json")
    except NotFoundError:
        raise UserError(
            f"input scored: {scored.uri} holds no scores; give the decisions of an agglomerate job"
        ) from None
    wanted = identity(context)
    different = [
        f"{group}.{name}"
        for group in ("inputs", "params")
        for name in sorted(made[group].keys() | wanted[group].keys())
        if made[group].get(name) != wanted[group].get(name)
    ]
    if different:
        raise UserError(
            f"input scored: its scores were made with other {', '.join(different)}; give the same, or leave scored out"
        )


def decide(context: Context[Any], work: Store, portions: Portions) -> dict[str, Any]:
    """Judge all pairs, join, write the tables; returns figures for the journal."""
    params: AgglomerateParams = context.params
    scored = context.optional_input("scored")
    if scored is not None:
        table, sizes = scored.store().get_arrays("scores.npz"), scored.store().get_arrays("segments.npz")
        work.put_arrays("segments.npz", **sizes)
    else:
        table, sizes = _together(portions()), work.get_arrays("segments.npz")
    work.put_arrays("scores.npz", **table)
    work.put_json("scoring.json", identity(context))
    segments = Segments(sizes["ids"], sizes["voxels"])
    reviews = read_reviews(params.reviewed) if params.reviewed else {}
    _check_reviews(reviews, segments, params.reviewed)

    rules = params.rules()
    rows, wanted = [], []
    for i in range(len(table["pairs"])):
        a, b = (int(v) for v in table["pairs"][i])
        voxels = (int(table["voxels"][i, 0]), int(table["voxels"][i, 1]))
        figures = {name: float(table[name][i]) for name in FIGURES} | {name: int(table[name][i]) for name in COUNTS}
        verdict = judge(figures, voxels, rules) if table["asked"][i] else Verdict(0.0, False, _NOT_ASKED)
        rows.append(
            [
                (a, b),
                table["points"][i][::-1].tolist(),
                voxels,
                int(table["faces"][i]),
                figures,
                verdict.score,
                verdict.reason,
            ]
        )
        if verdict.merge and (a, b) not in reviews:
            wanted.append(Pair(a, b, verdict.score, verdict.one_sided))
    asked_for = {row[0] for row in rows}
    for a, b in sorted(reviews.keys() - asked_for):  # a person may join what was not asked about
        size_a, size_b = segments.sizes(np.array([a, b], np.uint64)).tolist()
        rows.append([(a, b), [None] * 3, (size_a, size_b), 0, {}, 0.0, ""])
    accepted = [Pair(a, b, 1.0, accepted=True) for (a, b), review in reviews.items() if review == "accept"]
    rejected = [pair for pair, review in reviews.items() if review == "reject"]
    involved = sorted({s for p in [*wanted, *accepted] for s in (p.a, p.b)})
    involved_voxels = segments.sizes(np.array(involved, np.uint64)).tolist()
    joined = join(
        [*wanted, *accepted],
        dict(zip(involved, involved_voxels, strict=True)),
        apart=rejected,
        large_voxels=params.large_voxels,
        large_min_score=params.large_min_score,
    )
    for p in accepted:
        if (p.a, p.b) in joined.refused:
            raise UserError(
                f"params.reviewed: {p.a} and {p.b} are accepted, but with the other accepted pairs they "
                "would join two segments that are rejected"
            )
    merges = {(p.a, p.b) for p in [*wanted, *accepted]} - joined.refused.keys()
    lines = [_line(row, merges, joined.refused, reviews, joined.target) for row in rows]
    work.put_json("table.json", {"columns": list(COLUMNS), "rows": lines})
    work.put("decisions.csv", _csv(lines))
    moved = [(old, new) for old, new in joined.target.items() if old != new]
    work.put_arrays(
        "mapping.npz",
        old=np.array([old for old, _ in moved], np.uint64),
        new=np.array([new for _, new in moved], np.uint64),
    )
    return {
        "segments": len(segments.ids) - len(moved),
        "input_segments": len(segments.ids),
        "pairs": len(rows),
        "merged_pairs": len(merges),
        "guarded_pairs": len(joined.refused),
        "reviewed_pairs": len(reviews),
        "unscored_pairs": int((~table["asked"]).sum()),
        "fov_steps": int(table["steps"].sum()),
    }


def _together(portions: Iterable[tuple[Arrays, Arrays | None]]) -> Arrays:
    """One table of all portions; `asked` is False where a portion's task was given up."""
    empty: Arrays = {
        "pairs": np.zeros((0, 2), np.uint64), "faces": np.zeros(0, np.int64), "points": np.zeros((0, 3), np.int64),
        "voxels": np.zeros((0, 2), np.int64), "asked": np.zeros(0, bool),
        **{name: np.zeros(0, np.float32) for name in FIGURES}, **{name: np.zeros(0, np.int64) for name in COUNTS},
    }  # fmt: skip
    parts: dict[str, list[np.ndarray]] = {name: [array] for name, array in empty.items()}
    for candidates, scores in portions:
        n = len(candidates["pairs"])
        missing = {name: np.full(n, np.nan, np.float32) for name in FIGURES}
        missing |= {name: np.zeros(n, np.int64) for name in COUNTS}
        found = {**candidates, **(missing if scores is None else scores), "asked": np.full(n, scores is not None)}
        for name, arrays in parts.items():
            arrays.append(found[name])
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def _check_reviews(reviews: Reviews, segments: Segments, uri: str | None) -> None:
    pairs = np.array(sorted(reviews), np.uint64).reshape(-1, 2)
    absent = pairs[segments.sizes(pairs) == 0]
    if len(absent):
        raise UserError(
            f"params.reviewed: {uri} names segment {absent[0]}, which does not occur in the segmentation; review the "
            "decisions of this segmentation"
        )


def _line(row: list[Any], merges: Any, refused: Any, reviews: Reviews, target: Any) -> list[Any]:
    pair, point, voxels, faces, figures, score, reason = row
    merge = pair in merges
    if pair in reviews:
        reason = f"reviewed: {reviews[pair]}"
    elif pair in refused:
        reason = refused[pair]
    found = [None if v is None or v != v else round(v, 4) for v in (figures.get(n) for n in FIGURES)]
    together = target.get(pair[0], pair[0]) == target.get(pair[1], pair[1])
    return [
        *pair, *point, *voxels, faces, *found, *(figures.get(n) for n in COUNTS), round(score, 4),
        "merge" if merge else "keep", reason, target.get(pair[0]) if together else None, reviews.get(pair, ""),
    ]  # fmt: skip


def _csv(lines: list[list[Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(["" if v is None else v for v in line] for line in lines)
    return text.getvalue().encode()
