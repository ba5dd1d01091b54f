"""From decisions about pairs to agglomerated ids: union-find with guards.

Pairs are joined in the order of falling score, those that a person accepted first; ties are broken
by ids. So the result depends on nothing but the table. Two guards look at what a pair would join
as a whole, not only at its two segments:

- Two objects that are both large (`large_voxels` or more, what they gained so far included) are
  joined by a score of `large_min_score` or more only, and only if both floods agreed on it. A
  false merger of two fragments costs little; one of two neurons ruins both, and a chain through a
  fragment that belongs to neither, or to one of them, is the usual way to get there.
- What a person rejected stays apart, also by way of others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Pair:
    """Two segments (a < b) that are to be joined.

    score: 0 to 1. one_sided: by the flood from one of them alone. accepted: a person said so.
    """

    a: int
    b: int
    score: float
    one_sided: bool = False
    accepted: bool = False


@dataclass(frozen=True)
class Joined:
    """target: id of the object for every segment that was joined to another one (its own id, too).

    refused: pairs that a guard kept apart, with the reason.
    """

    target: Mapping[int, int]
    refused: Mapping[tuple[int, int], str]


LARGE = "both objects are large, and the evidence is not strong enough for that"
APART = "would join segments that were reviewed as apart"


def join(
    pairs: Iterable[Pair],
    voxels: Mapping[int, int],
    *,
    apart: Iterable[tuple[int, int]] = (),
    large_voxels: int,
    large_min_score: float,
) -> Joined:
    """Join pairs. voxels: size of every segment in them. An object keeps the id of its largest segment.

    Accepted pairs are not guarded by size; that they contradict `apart` is the caller's to refuse
    (they come back as refused).
    """
    parent: dict[int, int] = {}
    members: dict[int, list[int]] = {}
    size: dict[int, int] = {}
    enemies: dict[int, set[int]] = {}

    def root(segment: int) -> int:
        if segment not in parent:
            parent[segment] = segment
            members[segment] = [segment]
            size[segment] = voxels[segment]
            enemies.setdefault(segment, set())
        while parent[segment] != segment:
            parent[segment] = parent[parent[segment]]
            segment = parent[segment]
        return segment

    for a, b in apart:
        enemies.setdefault(a, set()).add(b)
        enemies.setdefault(b, set()).add(a)
    refused: dict[tuple[int, int], str] = {}
    for pair in sorted(pairs, key=lambda p: (not p.accepted, -p.score, p.a, p.b)):
        a, b = root(pair.a), root(pair.b)
        if a == b:
            continue
        if len(members[a]) < len(members[b]):
            a, b = b, a
        if any(segment in enemies[a] for segment in members[b]):
            refused[pair.a, pair.b] = APART
            continue
        sure = pair.accepted or (pair.score >= large_min_score and not pair.one_sided)
        if min(size[a], size[b]) >= large_voxels and not sure:
            refused[pair.a, pair.b] = LARGE
            continue
        parent[b] = a
        members[a] += members.pop(b)
        size[a] += size.pop(b)
        enemies[a] |= enemies.pop(b)
    target = {}
    for group in members.values():
        if len(group) > 1:
            name = min(group, key=lambda segment: (-voxels[segment], segment))
            target.update(dict.fromkeys(group, name))
    return Joined(dict(sorted(target.items())), refused)
