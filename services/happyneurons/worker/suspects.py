"""Finding the task that kills its rank.

A segmentation fault or the out-of-memory killer takes the whole MPI job along, so the culprit
leaves no outcome. But every attempt says in its progress what is under way. After one attempt
died that way, the next one says so before each task ("careful"); what was under way when that
one died is suspect and runs at the end: a few at a time first if there are many of them, then
alone; what dies alone is quarantined.

Attempts that ended with their allocation (walltime, preemption) as far as the site knows raise no
suspicion. Most other deaths are a lost node, not a task: that is why hundreds of suspects, the
tasks of as many ranks, must not each run alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from happyneurons.jobs.attempts import EndState, attempt_end, attempt_progress
from happyneurons.store.documents import Store

Caution = Literal["none", "group", "alone"]
"""How tasks were run when their attempt died: all together, few at a time, one at a time."""

FEW = 4
"""So many suspects run alone at once."""


@dataclass
class Suspects:
    """`(round, key)` of tasks under way when earlier attempts died."""

    careful: bool = False
    under_way: set[tuple[str, str]] = field(default_factory=set)
    alone: set[tuple[str, str]] = field(default_factory=set)
    narrowed: bool = False
    """Whether the suspects are those of a group already."""

    def seen(self, round_name: str, key: str) -> bool:
        return (round_name, key) in self.under_way

    def died_alone(self, round_name: str, key: str) -> bool:
        return (round_name, key) in self.alone

    def at_a_time(self, count: int) -> int:
        """How many of `count` suspects to run together: with the square root of them, two deaths convict."""
        return 1 if self.narrowed or count <= FEW else math.isqrt(count - 1) + 1


def find_suspects(store: Store, key: str, attempt: int) -> Suspects:
    """Judge by the attempts before `attempt` that ended without saying why."""
    suspects = Suspects()
    for number in range(1, attempt):
        end = attempt_end(store, key, number)
        if end is None or end["state"] != EndState.SUPERSEDED or end.get("allocation_ended"):
            continue
        progress = attempt_progress(store, key, number)
        if progress is None:
            continue
        tasks = {(progress["round"], task) for task in progress["in_flight"]}
        caution: Caution = progress.get("caution", "none")
        if caution == "group":
            suspects.under_way, suspects.narrowed = tasks, True
        elif suspects.careful:
            suspects.under_way |= tasks
        if caution == "alone":
            suspects.alone |= tasks
        suspects.careful = True
    return suspects
