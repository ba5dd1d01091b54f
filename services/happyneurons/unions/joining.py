"""What a group of cells joins, what it passes up, and how final ids come back down.

Method. The union-find over all segments is cut along space. A group takes the segments of its
cells and unites those that pairs inside the group join. A component none of whose segments has a
pair with a cell outside is *closed*: nothing that other groups know can change it, and it stays
here. The others are *open*; the group above gets them as its nodes, together with the pairs that
leave the group and the segments those pairs end in. It unites the components of its eight children
along the pairs between them, and so on: at the top nothing is open. Then ids go down: a group
numbers the components that it closed, gives each child the range that the child needs, and tells
it what became of the components that it had left open.

The result is that of one union-find over everything (connectivity does not depend on the order in
which edges are looked at), with ids 1, 2, … without gaps: those of a group's own closed components
first, by their first node, then those of its children in order. Ids depend on the input only.

Memory of a task: at level 0 the segments and pairs of the group's cells, above it the segments
that have pairs across the borders of its children. Neither the voxels nor the number of cells
count; borders grow with the area between groups, not with the volume.

Doubt. A pair that is not `whole` counts only if neither of its segments is doubted. Who doubts a
segment is known around its own cell; so a pair is judged where both of its ends are known, in the
smallest group that has both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np

from happyneurons.store.triples import Triple
from happyneurons.unions.tree import GroupTree

Found = Mapping[str, np.ndarray]
"""What is known of a cell before anything is joined. Keys of segments are made by `segment_keys`.

segments: (n,) int64 sorted keys of its segments. pairs: (m, 2) int64 keys of segments that belong
together, the first in this cell, the second in a later one; each pair of cells is compared once.
whole: (m,) bool, see the module's text. doubted: int64 keys, of this cell or others.
voxel_keys, voxels: int64 keys, each once, of this cell or others, and voxels to add to their sizes.
"""


def segment_keys(cell: int, ids: np.ndarray) -> np.ndarray:
    """int64 keys of segments, unique in the whole volume: cell number * 2**32 + local id (uint32)."""
    return np.int64(cell) << np.int64(32) | ids.astype(np.int64)


def cell_numbers(keys: np.ndarray) -> np.ndarray:
    """int64 cell numbers of keys."""
    return keys >> np.int64(32)


def local_ids(keys: np.ndarray) -> np.ndarray:
    """uint32 local ids of keys."""
    return (keys & np.int64(0xFFFFFFFF)).astype(np.uint32)


def numbers(keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Places of `wanted` (any shape) in the sorted `keys`, -1 for those that are not there."""
    place = np.searchsorted(keys, wanted)
    if len(keys) == 0:
        return np.full(wanted.shape, -1)
    return np.where(keys[np.minimum(place, len(keys) - 1)] == wanted, place, -1)


def components(count: int, edges: np.ndarray) -> np.ndarray:
    """Component of every node: (count,) int64, 0, 1, … in the order of each one's smallest member.

    edges: (n, 2) integer node numbers, in any order, repetitions allowed.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    if count == 0:
        return np.zeros(0, np.int64)
    pairs = np.asarray(edges, np.int64).reshape(-1, 2)
    graph = coo_matrix((np.ones(len(pairs), np.int8), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    _, labels = connected_components(graph, directed=False)
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first, kind="stable")] = np.arange(len(first))
    return rank[inverse]


@dataclass(frozen=True)
class Joined:
    """The components of a group. Nodes are the segments of its cells, or the open components of its children.

    labels: (nodes,) int64 component of each node. voxels: (components,) int64.
    open: (components,) bool, joined with something outside. kept: (components,) bool, closed and large enough.
    child_nodes, child_kept: (children,) int64: nodes of each child (cell or group), and how many kept
    components were closed in it or below.
    border, border_open, border_doubted: (b,) int64 sorted keys of segments with pairs that leave the
    group; place of each one's component among the open ones; whether it is doubted.
    pairs, whole: (p, 2) int64 keys and (p,) bool: the pairs that leave the group.
    counts: (2,) int64: segments doubted (level 0 only), pairs that doubt kept from joining.
    """

    labels: np.ndarray
    voxels: np.ndarray
    open: np.ndarray
    kept: np.ndarray
    child_nodes: np.ndarray
    child_kept: np.ndarray
    border: np.ndarray
    border_open: np.ndarray
    border_doubted: np.ndarray
    pairs: np.ndarray
    whole: np.ndarray
    counts: np.ndarray

    def arrays(self) -> dict[str, np.ndarray]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def total_kept(self) -> int:
        """Ids that the group and all below it need."""
        return int(self.kept.sum() + self.child_kept.sum())

    @property
    def figures(self) -> dict[str, int]:
        """Small figures for the journal; summed over all groups they describe the whole."""
        closed = ~self.open
        return {
            "nodes": len(self.labels),
            "merges": len(self.labels) - len(self.voxels),
            "kept": int(self.kept.sum()),
            "dropped": int((closed & ~self.kept & (self.voxels > 0)).sum()),
            "doubted": int(self.counts[0]),
            "doubtful_pairs": int(self.counts[1]),
        }


def join_cells(
    tree: GroupTree,
    group_zyx: Triple,
    find: Callable[[Triple], Found | None],
    neighbours: Callable[[Triple], Iterable[Triple]],
    min_voxels: int,
) -> tuple[np.ndarray, Joined]:
    """Join a group of level 0: (sorted keys of its segments, its components).

    find: what was found in a cell, None if there is nothing; called once for each cell in and around
    the group, and of those around it nothing is kept that does not concern the group. neighbours:
    cells, earlier and later, whose findings may name segments of a cell.
    """
    cells = list(tree.cells(0, group_zyx))
    own = {cell: find(cell) for cell in cells}
    segments = [found["segments"] if found else np.zeros(0, np.int64) for found in own.values()]
    keys = np.concatenate(segments)
    voxels, doubted = np.zeros(len(keys), np.int64), np.zeros(len(keys), bool)
    inside, leaving = _Pairs(), _Pairs()
    for cell in sorted({*cells, *(n for c in cells for n in neighbours(c))}):
        found = own[cell] if cell in own else find(cell)
        if not found:
            continue
        place = numbers(keys, found["doubted"])
        doubted[place[place >= 0]] = True
        place = numbers(keys, found["voxel_keys"])
        voxels[place[place >= 0]] += found["voxels"][place >= 0]
        in_group = tree.inside(0, group_zyx, cell_numbers(found["pairs"]))
        inside.add(found, in_group[:, 0] & in_group[:, 1])
        leaving.add(found, in_group[:, 0] ^ in_group[:, 1])
    joined = _join(
        voxels, (keys, np.arange(len(keys)), doubted), inside, leaving, min_voxels,
        children=[(len(s), 0) for s in segments], doubted=int(doubted.sum()),
    )  # fmt: skip
    return keys, joined


def join_groups(tree: GroupTree, level: int, group_zyx: Triple, children: Sequence[Joined], min_voxels: int) -> Joined:
    """Join a group of level 1 or above. children: in the order of `tree.children`."""
    inside, leaving = _Pairs(), _Pairs()
    nodes, first_node = [], 0
    for index, child in zip(tree.children(level, group_zyx), children, strict=True):
        cells = cell_numbers(child.pairs)
        in_group = tree.inside(level, group_zyx, cells)
        both = in_group[:, 0] & in_group[:, 1]
        # Both children pass a pair between them up; it is taken from that of its first end.
        inside.add(child.arrays(), both & tree.inside(level - 1, index, cells[:, 0]))
        leaving.add(child.arrays(), ~both)
        nodes.append(first_node + child.border_open)
        first_node += int(child.open.sum())
    keys = np.concatenate([c.border for c in children])
    order = np.argsort(keys, kind="stable")
    known = keys[order], np.concatenate(nodes)[order], np.concatenate([c.border_doubted for c in children])[order]
    return _join(
        np.concatenate([c.voxels[c.open] for c in children]), known, inside, leaving, min_voxels,
        children=[(int(c.open.sum()), c.total_kept) for c in children], doubted=0,
    )  # fmt: skip


class _Pairs:
    """Pairs collected from several places."""

    def __init__(self) -> None:
        self._pairs, self._whole = [np.zeros((0, 2), np.int64)], [np.zeros(0, bool)]

    def add(self, found: Found, wanted: np.ndarray) -> None:
        self._pairs.append(found["pairs"][wanted])
        self._whole.append(found["whole"][wanted])

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        return np.concatenate(self._pairs), np.concatenate(self._whole)


def _join(
    node_voxels: np.ndarray,
    known: tuple[np.ndarray, np.ndarray, np.ndarray],
    inside: _Pairs,
    leaving: _Pairs,
    min_voxels: int,
    *,
    children: Sequence[tuple[int, int]],
    doubted: int,
) -> Joined:
    """known: sorted keys, their nodes, whether they are doubted. children: (nodes, kept below) of each."""
    keys, node, doubt = known
    pairs, whole = inside.arrays()
    ends = numbers(keys, pairs)
    there = (ends >= 0).all(axis=1)  # the work on the other cell may have been given up
    ends, whole = ends[there], whole[there]
    agreed = whole | ~doubt[ends].any(axis=1)
    labels = components(len(node_voxels), node[ends[agreed]])
    voxels = np.zeros(int(labels.max(initial=-1)) + 1, np.int64)
    np.add.at(voxels, labels, node_voxels)

    pairs, whole = leaving.arrays()
    ends = numbers(keys, pairs).max(axis=1, initial=-1)
    pairs, whole, border = pairs[ends >= 0], whole[ends >= 0], np.unique(ends[ends >= 0])
    opened = np.zeros(len(voxels), bool)
    opened[labels[node[border]]] = True
    place = np.cumsum(opened) - 1
    return Joined(
        labels=labels,
        voxels=voxels,
        open=opened,
        kept=~opened & (voxels >= max(1, min_voxels)),
        child_nodes=np.array([n for n, _ in children], np.int64),
        child_kept=np.array([k for _, k in children], np.int64),
        border=keys[border],
        border_open=place[labels[node[border]]],
        border_doubted=doubt[border],
        pairs=pairs,
        whole=whole,
        counts=np.array([doubted, int((~agreed).sum())], np.int64),
    )


@dataclass(frozen=True)
class Ids:
    """What a group, or a cell, gets from the group above it.

    first: the id that its own numbering starts with. open: uint64 ids of its open components (of a
    cell: of its segments), in order, 0 for those that were dropped.
    """

    first: int
    open: np.ndarray


def number(joined: Joined, ids: Ids) -> list[Ids]:
    """Final ids for each child of a group, from those that the group was given. See the module's text."""
    own = int(joined.kept.sum())
    of_component = np.zeros(len(joined.voxels), np.uint64)
    of_component[joined.kept] = np.arange(ids.first, ids.first + own, dtype=np.uint64)
    of_component[joined.open] = ids.open
    of_node = of_component[joined.labels]
    firsts = ids.first + own + np.cumsum(joined.child_kept) - joined.child_kept
    parts = np.split(of_node, np.cumsum(joined.child_nodes)[:-1])
    return [Ids(int(first), part) for first, part in zip(firsts, parts, strict=True)]
