"""Joining by groups gives what one union-find over everything gives."""

from __future__ import annotations

import random
from collections import Counter
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from happyneurons.unions.joining import (
    Found,
    Ids,
    Joined,
    components,
    join_cells,
    join_groups,
    local_ids,
    number,
    numbers,
    segment_keys,
)
from happyneurons.unions.tree import GroupTree, Triple

Edge = tuple[int, int]


def plain_components(count: int, edges: list[Edge]) -> list[int]:
    """The plainest union-find there is: the smallest member of each node's component."""
    parent = list(range(count))

    def root(i: int) -> int:
        while parent[i] != i:
            i = parent[i]
        return i

    for a, b in edges:
        a, b = sorted((root(a), root(b)))
        parent[b] = a
    return [root(i) for i in range(count)]


def around(shape: Triple, cell: Triple) -> list[Triple]:
    """Neighbours of a cell, those by edges and corners too."""
    near = product(*(range(max(0, i - 1), min(n, i + 2)) for i, n in zip(cell, shape, strict=True)))
    return [other for other in near if other != cell]


def by_groups(tree: GroupTree, found: dict[Triple, Found], min_voxels: int, order: Any) -> dict[int, int]:
    """Final id of every segment key; the groups of each level are worked on in a random order."""
    joined: dict[tuple[int, Triple], Joined] = {}
    keys: dict[Triple, np.ndarray] = {}
    for level in range(tree.levels):
        groups = list(tree.groups(level))
        order.shuffle(groups)
        for group in groups:
            if level == 0:
                keys[group], joined[0, group] = join_cells(
                    tree, group, found.get, lambda cell: around(tree.shape_zyx, cell), min_voxels
                )
            else:
                children = [joined[level - 1, child] for child in tree.children(level, group)]
                joined[level, group] = join_groups(tree, level, group, children, min_voxels)
    top = tree.levels - 1
    assert list(tree.groups(top)) == [(0, 0, 0)]
    assert not joined[top, (0, 0, 0)].open.any()
    given_ids = {(top, (0, 0, 0)): Ids(1, np.zeros(0, np.uint64))}
    out: dict[int, int] = {}
    for level in reversed(range(tree.levels)):
        for group in tree.groups(level):
            below = number(joined[level, group], given_ids[level, group])
            if level:
                for child, ids in zip(tree.children(level, group), below, strict=True):
                    given_ids[level - 1, child] = ids
            else:
                targets = np.concatenate([ids.open for ids in below])
                out |= dict(zip(keys[group].tolist(), targets.tolist(), strict=True))
    return out


@st.composite
def worlds(draw: Any) -> tuple[Triple, list[int], list[tuple[int, int, bool]], set[int], list[int], set[Triple]]:
    """Shape, cell of each segment, (segment, segment, whole) pairs, doubted segments, voxels, lost cells."""
    shape = (draw(st.integers(1, 4)), draw(st.integers(1, 4)), draw(st.integers(1, 7)))
    cells = list(product(*(range(n) for n in shape)))
    of_segment = sorted(draw(st.lists(st.integers(0, len(cells) - 1), max_size=60)))
    raw = draw(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**6), st.booleans()), max_size=120))
    pairs = []
    for a, pick, whole in raw:
        if of_segment:
            a %= len(of_segment)
            near = around(shape, cells[of_segment[a]])
            partners = [b for b, c in enumerate(of_segment) if cells[c] in near]
            if partners:
                b = partners[pick % len(partners)]
                pairs.append((min(a, b), max(a, b), whole))
    doubted = draw(st.sets(st.integers(0, max(0, len(of_segment) - 1)), max_size=8))
    voxels = draw(st.lists(st.integers(0, 9), min_size=len(of_segment), max_size=len(of_segment)))
    lost = draw(st.sets(st.sampled_from(cells), max_size=2))
    return shape, of_segment, pairs, doubted & set(range(len(of_segment))), voxels, lost


@given(world=worlds(), leaf_edge=st.integers(1, 2), min_voxels=st.integers(0, 12), order=st.randoms())
@example(world=((1, 1, 1), [], [], set(), [], set()), leaf_edge=1, min_voxels=0, order=random.Random(0))
@settings(max_examples=150)
def test_groups_find_what_one_union_find_finds(world: Any, leaf_edge: int, min_voxels: int, order: Any) -> None:
    shape, of_segment, pairs, doubted, voxels, lost = world
    tree = GroupTree(shape, leaf_edge)
    cells = list(product(*(range(n) for n in shape)))
    keys = [int(segment_keys(c, np.array([i + 1]))[0]) for i, c in enumerate(of_segment)]
    found: dict[Triple, Found] = {}
    for cell in cells:
        here = [i for i, c in enumerate(of_segment) if cells[c] == cell]
        near = [i for i, c in enumerate(of_segment) if cells[c] in around(shape, cell)]
        mine = list(dict.fromkeys(p for p in pairs if p[0] in here))
        order.shuffle(mine)
        # Doubt about a segment may come from any cell around it, voxels partly from the next cell.
        doubts = [keys[i] for i in sorted(doubted) if (i in here or i in near) and (order.random() < 0.5 or i in here)]
        found[cell] = {
            "segments": np.array([keys[i] for i in here], np.int64),
            "pairs": np.array([[keys[a], keys[b]] for a, b, _ in mine], np.int64).reshape(-1, 2),
            "whole": np.array([w for _, _, w in mine], bool),
            "doubted": np.array(doubts, np.int64),
            "voxel_keys": np.array([keys[i] for i in here], np.int64),
            "voxels": np.array([voxels[i] for i in here], np.int64),
        }
    for cell in lost:
        del found[cell]

    there = [i for i, c in enumerate(of_segment) if cells[c] not in lost]
    edges = [(a, b) for a, b, w in pairs if a in there and b in there and (w or not {a, b} & doubted)]
    roots = plain_components(len(keys), edges)
    size = Counter()
    for i in there:
        size[roots[i]] += voxels[i]
    result = by_groups(tree, found, min_voxels, order)
    assert sorted(result) == [keys[i] for i in there]
    kept = {roots[i] for i in there if size[roots[i]] >= max(1, min_voxels)}
    ids = {root: {result[keys[i]] for i in there if roots[i] == root} for root in {roots[i] for i in there}}
    assert all(ids[root] == {0} for root in ids if root not in kept)
    assert sorted(next(iter(ids[root])) for root in kept) == list(range(1, len(kept) + 1))
    assert all(len(ids[root]) == 1 for root in kept)
    assert by_groups(tree, found, min_voxels, order) == result


@given(
    count=st.integers(0, 40),
    raw=st.lists(st.tuples(st.integers(0, 39), st.integers(0, 39)), max_size=60),
    order=st.randoms(use_true_random=False),
)
@settings(max_examples=100)
def test_components_do_not_depend_on_the_order_of_edges(count: int, raw: list[Edge], order: Any) -> None:
    edges = [e for e in raw if max(e) < count]
    found = components(count, np.array(edges))
    roots = plain_components(count, edges)
    names = {r: n for n, r in enumerate(dict.fromkeys(roots))}
    assert found.tolist() == [names[r] for r in roots]
    shuffled = [e if order.random() < 0.5 else e[::-1] for e in edges + edges]
    order.shuffle(shuffled)
    assert (components(count, np.array(shuffled)) == found).all()


def chain(length: int) -> tuple[GroupTree, dict[Triple, Found]]:
    """A row of cells, each with a segment that goes on in the next and 50 that end in their own."""
    found: dict[Triple, Found] = {}
    for x in range(length):
        here = segment_keys(x, np.arange(1, 52))
        on = [[here[0], segment_keys(x + 1, np.array([1]))[0]]] if x + 1 < length else []
        found[0, 0, x] = {
            "segments": here, "pairs": np.array(on, np.int64).reshape(-1, 2), "whole": np.ones(len(on), bool),
            "doubted": here[:0], "voxel_keys": here, "voxels": np.full(51, 5),
        }  # fmt: skip
    return GroupTree((1, 1, length), 2), found


@pytest.mark.parametrize("length", [4, 64])
def test_a_group_holds_its_border_however_long_the_row(length: int) -> None:
    tree, found = chain(length)
    level: dict[Triple, Joined] = {
        group: join_cells(tree, group, found.get, lambda c: around(tree.shape_zyx, c), 0)[1] for group in tree.groups(0)
    }
    for number_of_level in range(1, tree.levels):
        level = {
            group: join_groups(
                tree, number_of_level, group, [level[c] for c in tree.children(number_of_level, group)], 0
            )
            for group in tree.groups(number_of_level)
        }
        assert all(len(j.labels) == len(j.child_nodes) == 2 for j in level.values())
        assert all(sum(a.size for a in j.arrays().values()) < 40 for j in level.values())
    assert level[0, 0, 0].total_kept == 50 * length + 1


def test_the_tree_covers_every_cell_once_at_every_level() -> None:
    tree = GroupTree((3, 9, 17), 4)
    assert [tree.edge(level) for level in range(tree.levels)] == [4, 8, 16, 32]
    everything = sorted(product(range(3), range(9), range(17)))
    for level in range(tree.levels):
        cells = [cell for group in tree.groups(level) for cell in tree.cells(level, group)]
        assert sorted(cells) == everything
        if level:
            children = [c for group in tree.groups(level) for c in tree.children(level, group)]
            assert sorted(children) == sorted(tree.groups(level - 1))
        for group in tree.groups(level):
            inside = tree.inside(level, group, np.arange(3 * 9 * 17))
            assert np.flatnonzero(inside).tolist() == [tree.number(c) for c in tree.cells(level, group)]
    assert GroupTree((1, 1, 1)).levels == 1


def test_keys_tell_cells_and_ids() -> None:
    keys = np.concatenate([segment_keys(0, np.array([3, 7])), segment_keys(2, np.array([1, 2**32 - 1]))])
    assert local_ids(keys).tolist() == [3, 7, 1, 2**32 - 1]
    assert numbers(keys, keys[::-1]).tolist() == [3, 2, 1, 0]
    assert numbers(keys, segment_keys(1, np.array([1, 3]))).tolist() == [-1, -1]
    assert numbers(keys[:0], keys[:1]).tolist() == [-1]
