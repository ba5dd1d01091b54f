"""Which segments of two overlapping subvolumes are the same neurite.

Method. A flood-filling network segments every subvolume by itself, so the ids of two overlapping
boxes have nothing to do with each other, but where both saw the same voxels their segments should
agree. The evidence is taken per *piece*: a 26-connected part of a segment inside the overlap. A
neurite that crosses the overlap twice is one segment in the box where its two branches meet and
two segments in the other; over the whole overlap neither of the two would agree with the one, yet
each of its pieces does.

A piece p of box A and a piece q of box B belong together if all of these hold:

- they share at least `min_voxels` voxels (no decisions on slivers);
- of the voxels of p that B labelled at all, at least `min_agreement` lie in q, and the same the
  other way round. What B left unsegmented is no disagreement: FFN segments end a little before
  the faces of their box;
- they share at least `min_coverage` of all voxels of p, and of q: a segment that bleeds a little
  into an object that the other box left empty does not get it;
- each is the other's best partner (largest shared count, then smallest id). With `min_agreement`
  of at least one half this follows, save for ties.

A merger in A therefore takes at most one of the pieces that B kept apart, never both, and a
split in A leaves its smaller part separate: wrong mergers cost a reconstruction more than splits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from happyneurons.metrics.contingency import Contingency


@dataclass(frozen=True)
class OverlapRules:
    """See the module's text; the two shares are fractions of 1."""

    min_voxels: int = 64
    min_agreement: float = 0.6
    min_coverage: float = 0.2


@dataclass(frozen=True)
class Overlap:
    """Decisions about one pair of boxes.

    edges: (n, 2) uint32, unique pairs (id in A, id in B) that belong together, sorted.
    shared: (n,) int64, voxels of the accepted pieces behind each edge.
    rejected: pairs of pieces that share `min_voxels` or more and were not accepted.
    """

    edges: np.ndarray
    shared: np.ndarray
    rejected: int


def compare(a: np.ndarray, b: np.ndarray, rules: OverlapRules) -> Overlap:
    """Decide about the overlap of two boxes.

    a, b: (z, y, x) uint32 ids of box A and box B on the same voxels; 0 is background.
    """
    import cc3d

    pieces_a = cc3d.connected_components(np.ascontiguousarray(a), connectivity=26, out_dtype=np.uint32)
    pieces_b = cc3d.connected_components(np.ascontiguousarray(b), connectivity=26, out_dtype=np.uint32)
    table = Contingency.of(pieces_a, pieces_b)
    size_a, size_b = _sizes(*table.first_totals()), _sizes(*table.second_totals())
    both = table.where((table.first > 0) & (table.second > 0))
    seen_a, seen_b = _sizes(*both.first_totals()), _sizes(*both.second_totals())

    enough = both.where(both.counts >= rules.min_voxels)
    p, q, n = enough.first.astype(np.int64), enough.second.astype(np.int64), enough.counts
    accepted = (
        (n >= rules.min_agreement * seen_a[p])
        & (n >= rules.min_agreement * seen_b[q])
        & (n >= rules.min_coverage * size_a[p])
        & (n >= rules.min_coverage * size_b[q])
        & _best(p, q, n)
        & _best(q, p, n)
    )
    ids_a, ids_b = _owners(pieces_a, a), _owners(pieces_b, b)
    edges = Contingency.sum([Contingency(ids_a[p[accepted]], ids_b[q[accepted]], n[accepted])])
    return Overlap(
        edges=np.stack([edges.first, edges.second], axis=1).astype(np.uint32),
        shared=edges.counts,
        rejected=int((~accepted).sum()),
    )


def _sizes(ids: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Counts as an array indexed by id; piece ids are consecutive, so it is no larger than needed."""
    sizes = np.zeros(int(ids[-1]) + 1 if len(ids) else 1, np.int64)
    sizes[ids.astype(np.int64)] = counts
    return sizes


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
