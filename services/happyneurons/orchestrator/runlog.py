"""The event log of a run: its only state.

`runs/ID/spec.json` and `runs/ID/events/NNNNNNNN.json`, each written by put-if-absent. Two
orchestrators cannot both write event 17, so they cannot both lead a run: the one that loses
reads what the other wrote. A restarted orchestrator replays the log.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from happyneurons.errors import HappyError
from happyneurons.store.documents import Store


class LogConflictError(HappyError):
    """Somebody else wrote to this run's log."""


@dataclass(frozen=True)
class Event:
    """One thing that happened. `number` counts from 1 without gaps."""

    number: int
    type: str
    subject: str = ""
    message: str = ""
    time: float = 0.0
    data: dict[str, Any] = field(default_factory=dict)


def run_folder(run_id: str) -> str:
    return f"runs/{run_id}"


def append_event(store: Store, run_id: str, event: Event) -> None:
    """Write the next event. Raises LogConflictError if its number is taken."""
    if not store.create_json(f"{run_folder(run_id)}/events/{event.number:08d}.json", vars(event)):
        raise LogConflictError(f"run {run_id}: another orchestrator wrote event {event.number}")


def read_events(store: Store, run_id: str, after: int = 0) -> Iterator[Event]:
    """Events after a number, in order, up to the first gap (there is none but at the end)."""
    number = after + 1
    while True:
        document = store.find_json(f"{run_folder(run_id)}/events/{number:08d}.json")
        if document is None:
            return
        yield Event(**document)
        number += 1


def create_run(store: Store, run_id: str, spec: dict[str, Any]) -> bool:
    """Register a run; False if there is one of that id already."""
    return store.create_json(f"{run_folder(run_id)}/spec.json", spec)


def load_run_spec(store: Store, run_id: str) -> dict[str, Any] | None:
    document: dict[str, Any] | None = store.find_json(f"{run_folder(run_id)}/spec.json")
    return document


def list_runs(store: Store) -> list[str]:
    """Run ids, oldest first: ids begin with the time of submission."""
    return store.folders("runs")


def now() -> float:
    return round(time.time(), 3)
