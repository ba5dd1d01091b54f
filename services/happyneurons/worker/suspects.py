"""Finding the task that kills its rank.

A segmentation fault or the out-of-memory killer takes the whole MPI job along, so the culprit
leaves no outcome. But every attempt says in its progress what is under way. After one attempt
died that way, the next one says so before each task ("careful"); what was under way when that
one died is suspect and runs alone, at the end; what dies alone is quarantined.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from happyneurons.jobs.attempts import EndState, attempt_end, attempt_progress
from happyneurons.store.documents import Store


@dataclass
class Suspects:
    """`(round, key)` of tasks under way when earlier attempts died."""

    careful: bool = False
    under_way: set[tuple[str, str]] = field(default_factory=set)
    alone: set[tuple[str, str]] = field(default_factory=set)

    def seen(self, round_name: str, key: str) -> bool:
        return (round_name, key) in self.under_way

    def died_alone(self, round_name: str, key: str) -> bool:
        return (round_name, key) in self.alone


def find_suspects(store: Store, key: str, attempt: int) -> Suspects:
    """Judge by the attempts before `attempt` that ended without saying why."""
    suspects = Suspects()
    for number in range(1, attempt):
        end = attempt_end(store, key, number)
        if end is None or end["state"] != EndState.SUPERSEDED:
            continue
        progress = attempt_progress(store, key, number)
        if progress is None:
            continue
        tasks = {(progress["round"], task) for task in progress["in_flight"]}
        if suspects.careful:
            suspects.under_way |= tasks
            if progress["solo"]:
                suspects.alone |= tasks
        suspects.careful = True
    return suspects
