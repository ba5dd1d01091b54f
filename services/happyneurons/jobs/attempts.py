"""Attempts: who works on a job now, and who may publish its result.

Three documents under `jobs/KEY/attempts/NNNN/`, the first two written by put-if-absent:

begin.json     claims the number: of two processes that start attempt 3, one wins.
end.json       the outcome, decided once. An attempt publishes by putting its manifest into its
               own end.json; a successor supersedes it by putting "superseded" there first.
               Whichever comes first wins, so an attempt that was superseded cannot publish,
               however long it was paused.
progress.json  overwritten every few seconds; its sequence number is the heartbeat.
drain.json     written when the attempt is to end soon: long tasks look for it, save what they have and give up.

`jobs/KEY/manifest.json` is a copy of the manifest inside the winning end.json. If its writer died
between the two, the next reader that cares (:func:`settle`) makes the copy.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from happyneurons.errors import SupersededError
from happyneurons.store.artifacts import Manifest, load_manifest, manifest_path
from happyneurons.store.documents import Store

LEASE_S = 30.0
"""An open attempt whose heartbeat did not move for this long is taken for dead."""


class EndState(StrEnum):
    """How an attempt ended. Each exists because something else follows from it."""

    SUCCEEDED = "succeeded"  # the result is published
    FAILED_USER = "failed_user"  # bad input: never retried
    FAILED_TASKS = "failed_tasks"  # poison tasks are quarantined: retried only when a person says so
    ERROR = "error"  # infrastructure: retried within its own budget
    DRAINED = "drained"  # asked to stop in time: goes on elsewhere, costs no budget
    CANCELLED = "cancelled"  # by its owner: not retried
    SUPERSEDED = "superseded"  # another attempt took over


@dataclass
class Attempt:
    """One attempt that this process holds."""

    store: Store
    key: str
    number: int
    owner: str
    sequence: int = field(default=0)

    @property
    def folder(self) -> str:
        return attempt_folder(self.key, self.number)

    def beat(self, progress: Mapping[str, Any]) -> None:
        """Heartbeat with what is known of the progress."""
        self.sequence += 1
        self.store.put_json(f"{self.folder}/progress.json", {**progress, "sequence": self.sequence})

    def superseded(self) -> bool:
        return self.store.exists(f"{self.folder}/end.json")

    def cancel_requested(self) -> bool:
        return self.store.exists(f"jobs/{self.key}/attempts/{self.number:04d}/cancel.json")

    def announce_drain(self, reason: str) -> None:
        """Tell the tasks at work, on whatever rank, that the attempt is to end soon."""
        self.store.put_json(drain_path(self.key, self.number), {"reason": reason})

    def end(self, state: EndState, message: str = "", **details: Any) -> None:
        """Decide the outcome. Raises SupersededError if it was decided by somebody else."""
        document = {"state": state.value, "message": message, "owner": self.owner, "time": time.time(), **details}
        if not self.store.create_json(f"{self.folder}/end.json", document):
            raise SupersededError(f"job {self.key}: attempt {self.number} was superseded; nothing is published")

    def publish(self, manifest: Manifest) -> None:
        """Make the result visible. Raises SupersededError if another attempt took over."""
        self.end(EndState.SUCCEEDED, manifest=manifest.model_dump(mode="json"))
        settle(self.store, self.key)


def attempt_folder(key: str, number: int) -> str:
    return f"jobs/{key}/attempts/{number:04d}"


def drain_path(key: str, number: int) -> str:
    return f"{attempt_folder(key, number)}/drain.json"


def attempt_numbers(store: Store, key: str) -> list[int]:
    return [int(name) for name in store.folders(f"jobs/{key}/attempts")]


def attempt_end(store: Store, key: str, number: int) -> dict[str, Any] | None:
    document: dict[str, Any] | None = store.find_json(f"{attempt_folder(key, number)}/end.json")
    return document


def attempt_progress(store: Store, key: str, number: int) -> dict[str, Any] | None:
    document: dict[str, Any] | None = store.find_json(f"{attempt_folder(key, number)}/progress.json")
    return document


def owner_id() -> str:
    """Host, process and a random part: no two processes share it."""
    return f"{socket.gethostname()}:{os.getpid()}:{os.urandom(4).hex()}"


def request_cancel(store: Store, key: str, number: int, reason: str) -> None:
    """Leave the marker that ranks poll. The attempt ends within a few seconds."""
    store.create_json(f"{attempt_folder(key, number)}/cancel.json", {"reason": reason})


def settle(store: Store, key: str) -> Manifest | None:
    """The published manifest, finishing a publication whose writer died halfway."""
    manifest = load_manifest(store, key)
    if manifest is not None:
        return manifest
    for number in reversed(attempt_numbers(store, key)):
        end = attempt_end(store, key, number)
        if end is not None and end["state"] == EndState.SUCCEEDED:
            store.create_json(manifest_path(key), end["manifest"])
            return load_manifest(store, key)
    return None


def supersede(
    store: Store, key: str, number: int, by: str, reason: str, *, allocation_ended: bool = False
) -> dict[str, Any]:
    """Close an attempt on its behalf; returns its end, which may be one it made itself.

    allocation_ended: the site took its nodes away (walltime, preemption), so no task is to blame.
    """
    document = {
        "state": EndState.SUPERSEDED.value, "message": reason, "owner": by, "time": time.time(),
        "allocation_ended": allocation_ended,
    }  # fmt: skip
    store.create_json(f"{attempt_folder(key, number)}/end.json", document)
    end = attempt_end(store, key, number)
    assert end is not None
    return end


def claim(store: Store, key: str, owner: str, *, takeover: bool = False, lease_s: float = LEASE_S) -> Attempt | None:
    """Begin the next attempt; None if the job turns out to be published already.

    An open attempt is closed first: at once with `takeover` (the caller knows that its process is
    gone), otherwise after its heartbeat stood still for `lease_s` by our own clock. Raises
    SupersededError if it is alive, or if another process was faster.
    """
    numbers = attempt_numbers(store, key)
    last = numbers[-1] if numbers else 0
    if last and attempt_end(store, key, last) is None:
        if not takeover and _alive(store, key, last, lease_s):
            raise SupersededError(f"job {key}: attempt {last} is at work; this one stops")
        supersede(store, key, last, owner, "its process is gone" if takeover else "its heartbeat stopped")
    if settle(store, key) is not None:
        return None
    begin = {"owner": owner, "host": socket.gethostname(), "pid": os.getpid(), "time": time.time()}
    if not store.create_json(f"{attempt_folder(key, last + 1)}/begin.json", begin):
        raise SupersededError(f"job {key}: another process began attempt {last + 1}; this one stops")
    return Attempt(store, key, last + 1, owner)


def _alive(store: Store, key: str, number: int, lease_s: float) -> bool:
    """Watch a heartbeat for up to `lease_s`. Clocks of other hosts are not trusted."""

    def sequence() -> int:
        progress = attempt_progress(store, key, number)
        return -1 if progress is None else int(progress["sequence"])

    before, deadline = sequence(), time.monotonic() + lease_s
    while time.monotonic() < deadline:
        if attempt_end(store, key, number) is not None:
            return False
        if sequence() != before:
            return True
        time.sleep(min(0.5, lease_s / 10))
    return False
