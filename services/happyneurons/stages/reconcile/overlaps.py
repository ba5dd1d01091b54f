"""Which segments of two overlapping subvolumes are the same neurite.

Method. A flood-filling network segments every subvolume by itself, so the ids of two overlapping
boxes have nothing to do with each other, but where both saw the same voxels their segments should
agree. Regions p of box A and q of box B in the overlap agree if all of these hold:

- they share at least `min_voxels` voxels (no decisions on slivers);
- of the voxels of p that B labelled at all, at least `min_agreement` lie in q, and the same the
  other way round. What B left unsegmented is no disagreement: FFN segments end a little before
  the faces of their box;
- they share at least `min_coverage` of all voxels of p, and of q: a segment that bleeds a little
  into an object that the other box left empty does not get it;
- one of them has `min_coverage_of_one` of its voxels in the other. Two that are both mostly where the
  other box has nothing are rather two objects that meet, one of which bled into the other;
- each is the other's best partner (largest shared count, then smallest id). With `min_agreement`
  above one half this follows.

Two segments belong together if they agree over the whole overlap, or if a *piece* of one, a
26-connected part of it inside the overlap, agrees with a piece of the other. Pieces matter because
a neurite that crosses the overlap twice is one segment in the box where its branches meet and two
in the other; over the whole overlap neither of the two agrees with the one.

But a merger looks the same wherever its two neurites lie apart: through its pieces it would join
both in every box around. A merger gives itself away where another box sees the place: there the
other box cuts one piece of it in two. Such a segment is *doubted*, and what is joined with it must
agree over the whole overlap, so that it takes at most one of the two neurites in each neighbour. A
split in the other box raises the same doubt, wrongly; it then costs a split more, which is the
cheaper error. On input without errors nothing is doubted, and pieces make the result exact.

A segment also goes with one of the other box that *contains* it in the overlap, doubted or not:
they share `min_contained_voxels` or more, and `min_agreement` and `min_coverage` are asked of the
contained one only (two that meet are not joined so, either). That repairs what only one of the two
boxes split, and spreads what only one merged. Networks are trained and used so that they rather
split, and the more voxels are shared, the surer it is: of Google's network on FIB-25, in 27 boxes
that overlap by 32, all 50 such pairs that share 2,000 voxels or more are of one neuron, of 57 that
share less 23 are of two.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from happyneurons.metrics.contingency import Contingency


@dataclass(frozen=True)
class OverlapRules:
    """See the module's text; shares are fractions of 1. min_contained_voxels: 0 is never."""

    min_voxels: int = 64
    min_agreement: float = 0.7
    min_coverage: float = 0.2
    min_coverage_of_one: float = 0.5
    min_contained_voxels: int = 0


# A cut raises doubt if the smaller part is at least this share of the piece: crumbs do not.
_DOUBTFUL_SHARE = 0.1


@dataclass(frozen=True)
class Overlap:
    """Findings about one pair of boxes.

    edges: (n, 2) uint32, unique pairs (id in A, id in B) that agree, sorted.
    whole: (n,) bool, whether they agree over the whole overlap, not only in a piece, or one contains the
    other: doubt does not matter to them.
    doubted_a, doubted_b: sorted ids of segments that the other box gives cause to doubt.
    rejected: pairs of segments that share `min_voxels` or more and do not agree.
    """

    edges: np.ndarray
    whole: np.ndarray
    doubted_a: np.ndarray
    doubted_b: np.ndarray
    rejected: int


def compare(a: np.ndarray, b: np.ndarray, rules: OverlapRules) -> Overlap:
    """Compare the segments of two boxes where they overlap.

    a, b: (z, y, x) uint32 ids of box A and box B on the same voxels; 0 is background.
    """
    import cc3d

    pieces_a = cc3d.connected_components(np.ascontiguousarray(a), connectivity=26, out_dtype=np.uint32)
    pieces_b = cc3d.connected_components(np.ascontiguousarray(b), connectivity=26, out_dtype=np.uint32)
    of_a, of_b = _owners(pieces_a, a), _owners(pieces_b, b)
    pieces = Contingency.of(pieces_a, pieces_b)
    segments = Contingency.sum(
        [Contingency(of_a[pieces.first.astype(np.int64)], of_b[pieces.second.astype(np.int64)], pieces.counts)]
    )
    by_piece, by_segment = _Comparison(pieces, rules), _Comparison(segments, rules)
    p, q = by_piece.pairs[by_piece.agree].T
    whole = by_segment.pairs[by_segment.agree | by_segment.contained]
    edges = np.unique(np.concatenate([np.stack([of_a[p], of_b[q]], axis=1).astype(np.int64), whole]), axis=0)
    parts_of_a, parts_of_b = by_piece.parts(rules.min_agreement)
    return Overlap(
        edges=edges.astype(np.uint32),
        whole=_rows_in(edges, whole),
        doubted_a=_cut(by_piece.pairs[parts_of_a], of_a, of_b),
        doubted_b=_cut(by_piece.pairs[parts_of_b][:, ::-1], of_b, of_a),
        rejected=int((~_rows_in(by_segment.pairs, edges)).sum()),
    )


class _Comparison:
    """Shared voxels of the regions of two boxes (pieces, or whole segments).

    pairs: (n, 2) int64 ids of those that share `min_voxels` or more. agree, contained: (n,) bool.
    """

    def __init__(self, table: Contingency, rules: OverlapRules) -> None:
        all_a, all_b = _totals(*table.first_totals()), _totals(*table.second_totals())
        both = table.where((table.first > 0) & (table.second > 0))
        labelled_a, labelled_b = _totals(*both.first_totals()), _totals(*both.second_totals())
        enough = both.where(both.counts >= rules.min_voxels)
        p, q, n = enough.first.astype(np.int64), enough.second.astype(np.int64), enough.counts
        self.pairs = np.stack([p, q], axis=1)
        # Share of either region, of what the other box labelled of it, that lies in the other.
        self._share_a, self._share_b = n / labelled_a(p), n / labelled_b(q)
        cover_a, cover_b = n / all_a(p), n / all_b(q)
        a_in_b = (self._share_a >= rules.min_agreement) & (cover_a >= rules.min_coverage)
        b_in_a = (self._share_b >= rules.min_agreement) & (cover_b >= rules.min_coverage)
        # Whatever both labelled agrees, but it is the lesser part of either.
        meeting = a_in_b & b_in_a & (np.maximum(cover_a, cover_b) < rules.min_coverage_of_one)
        self.agree = a_in_b & b_in_a & ~meeting & _best(p, q, n) & _best(q, p, n)
        self.contained = (n >= rules.min_contained_voxels) & (a_in_b | b_in_a) & ~meeting
        if rules.min_contained_voxels == 0:
            self.contained[:] = False

    def parts(self, min_agreement: float) -> tuple[np.ndarray, np.ndarray]:
        """Which pairs are (a region of A, a sizeable part of it in B) and which the other way round."""
        return (
            (self._share_b >= min_agreement) & (self._share_a >= _DOUBTFUL_SHARE),
            (self._share_a >= min_agreement) & (self._share_b >= _DOUBTFUL_SHARE),
        )


def _cut(pairs: np.ndarray, owners: np.ndarray, part_owners: np.ndarray) -> np.ndarray:
    """Ids of segments with a piece of which two or more segments of the other box are parts.

    pairs: (n, 2) (piece, piece of the other box that is part of it).
    """
    parts = np.unique(np.stack([pairs[:, 0], part_owners[pairs[:, 1]].astype(np.int64)], axis=1), axis=0)
    piece, count = np.unique(parts[:, 0], return_counts=True)
    return np.unique(owners[piece[count > 1]]).astype(np.uint32)


def _rows_in(rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(n,) bool: whether each row of (n, 2) non-negative int64 below 2**32 is one of `others`."""
    return np.isin(rows[:, 0] << 32 | rows[:, 1], others[:, 0] << 32 | others[:, 1])


def _totals(ids: np.ndarray, counts: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Count of an id, for arrays of ids that are all known."""
    return lambda wanted: counts[np.searchsorted(ids, wanted.astype(np.uint64))]


def _best(p: np.ndarray, q: np.ndarray, shared: np.ndarray) -> np.ndarray:
    """True where a pair holds p's largest share; of equal ones, that with the smallest q."""
    order = np.lexsort((q, -shared, p))
    best = np.zeros(len(p), bool)
    first = np.ones(len(p), bool)
    first[1:] = p[order][1:] != p[order][:-1]
    best[order[first]] = True
    return best


def _owners(pieces: np.ndarray, segments: np.ndarray) -> np.ndarray:
    """uint64 segment id of every piece, indexed by piece."""
    owners = np.zeros(int(pieces.max(initial=0)) + 1, np.uint64)
    owners[pieces.ravel()] = segments.ravel()
    return owners
