"""Expected run length: how far one gets along a true skeleton before a mistake.

Method: Januszewski et al., High-precision automated reconstruction of neurons with flood-filling
networks, 2018. An edge is correct if both its nodes lie in one segment, omitted if a node lies in
none, split if they lie in two. A segment with at least `merger_nodes` nodes of two or more
skeletons is a merger, and its edges count as merged. A *run* is a connected path of correct edges
within one segment. A random place on the skeletons then lies on a run of expected length
sum(run²) / sum(path).

Skeletons can be done some at a time: all figures are sums over skeletons, once the mergers are known.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

UNKNOWN = np.uint64(0xFFFFFFFFFFFFFFFF)
"""Segment of a node that could not be looked up: its edges are not scored."""


@dataclass(frozen=True)
class RunLengths:
    """Figures of each skeleton, float64 arrays of one length in one unit of length.

    path: all its scored edges. correct, merged, split, omitted: parts of it, by kind of edge.
    runs: number of runs. longest: the longest of them. squared_runs: sum of their squares.
    squared_segments: the same with all that one segment covers of the skeleton counted together,
    be it connected or not. squared_paths: sum of squares of the skeleton's connected parts.
    """

    path: np.ndarray
    correct: np.ndarray
    merged: np.ndarray
    split: np.ndarray
    omitted: np.ndarray
    runs: np.ndarray
    longest: np.ndarray
    squared_runs: np.ndarray
    squared_segments: np.ndarray
    squared_paths: np.ndarray

    @classmethod
    def joined(cls, parts: Iterable[Mapping[str, Any]]) -> RunLengths:
        """One after the other, of what `arrays` gave."""
        found = list(parts)
        return cls(*(np.concatenate([np.zeros(0), *(p[f.name] for p in found)]) for f in fields(cls)))

    def arrays(self) -> dict[str, np.ndarray]:
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def figures(self) -> dict[str, float] | None:
        """erl, erl_max (without any mistake), erl_by_segment, path, and shares of the path; None without a path."""
        path = float(self.path.sum())
        if path <= 0:
            return None
        return {
            "erl": float(self.squared_runs.sum()) / path,
            "erl_max": float(self.squared_paths.sum()) / path,
            "erl_by_segment": float(self.squared_segments.sum()) / path,
            "path": path,
            **{
                f"{kind}_fraction": float(getattr(self, kind).sum()) / path
                for kind in ("correct", "merged", "split", "omitted")
            },
        }


def crossings(skeleton: np.ndarray, segment: np.ndarray, merger_nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """(skeletons, segments) of the pairs that share at least `merger_nodes` nodes, sorted.

    skeleton: (n,) number of each node's skeleton. segment: (n,) uint64 segment of each node.
    """
    known = (segment > 0) & (segment != UNKNOWN)
    if not known.any():
        return np.zeros(0, np.int64), np.zeros(0, np.uint64)
    segments, place = np.unique(segment[known], return_inverse=True)
    pair, count = np.unique(skeleton[known].astype(np.int64) * len(segments) + place, return_counts=True)
    pair = pair[count >= merger_nodes]
    return pair // len(segments), segments[pair % len(segments)]


def mergers(segments: Iterable[np.ndarray]) -> np.ndarray:
    """Segments that occur in the pairs of two or more skeletons, ascending.

    segments: the second array of `crossings`, of different skeletons each.
    """
    ids, count = np.unique(np.concatenate([np.zeros(0, np.uint64), *segments]), return_counts=True)
    return np.asarray(ids[count > 1])


def run_lengths(
    count: int, skeleton: np.ndarray, edges: np.ndarray, length: np.ndarray, segment: np.ndarray, merged: np.ndarray
) -> RunLengths:
    """Figures of skeletons 0 … count - 1.

    skeleton: (n,) number of each node's skeleton. edges: (m, 2) nodes, both of one skeleton.
    length: (m,) of the edges, in any unit. segment: (n,) uint64 segment of each node, 0 for none.
    merged: ids of the mergers.
    """
    known = (segment[edges] != UNKNOWN).all(axis=1)
    edges, length = edges[known], length[known]
    owner, ids = skeleton[edges[:, 0]].astype(np.int64), segment[edges]
    omitted = (ids == 0).any(axis=1)
    split = ~omitted & (ids[:, 0] != ids[:, 1])
    bad = ~omitted & ~split & np.isin(ids[:, 0], merged)
    good = ~(omitted | split | bad)

    def per_skeleton(keep: np.ndarray) -> np.ndarray:
        return np.bincount(owner[keep], weights=length[keep], minlength=count)

    def groups(keep: np.ndarray, part: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(skeleton, length) of the edges that are kept, together where `part` is the same."""
        keys, first, place = np.unique(part[keep], return_index=True, return_inverse=True)
        return owner[keep][first], np.bincount(place, weights=length[keep], minlength=len(keys))

    def squares(whose: np.ndarray, run: np.ndarray) -> np.ndarray:
        return np.bincount(whose, weights=run * run, minlength=count)

    nodes = len(segment)
    runs = groups(good, connected_parts(nodes, edges[good])[edges[:, 0]])
    _, segment_place = np.unique(ids[:, 0], return_inverse=True)
    covered = groups(good, owner * (int(segment_place.max(initial=0)) + 1) + segment_place)
    every = np.ones(len(edges), bool)
    whole = groups(every, connected_parts(nodes, edges)[edges[:, 0]])
    longest = np.zeros(count)
    np.maximum.at(longest, runs[0], runs[1])
    return RunLengths(
        path=per_skeleton(every),
        correct=per_skeleton(good),
        merged=per_skeleton(bad),
        split=per_skeleton(split),
        omitted=per_skeleton(omitted),
        runs=np.bincount(runs[0], minlength=count).astype(np.float64),
        longest=longest,
        squared_runs=squares(*runs),
        squared_segments=squares(*covered),
        squared_paths=squares(*whole),
    )


def connected_parts(nodes: int, edges: np.ndarray) -> np.ndarray:
    """(nodes,) number of the connected part that each node is in; edges: (m, 2)."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    graph = coo_matrix((np.ones(len(edges), np.int8), (edges[:, 0], edges[:, 1])), shape=(nodes, nodes))
    return np.asarray(connected_components(graph, directed=False)[1]).astype(np.int64)
