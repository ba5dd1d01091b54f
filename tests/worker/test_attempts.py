"""Promise: of all attempts of a job exactly one publishes, whatever dies or is paused when."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from happyneurons.errors import SupersededError
from happyneurons.jobs.attempts import EndState, attempt_end, attempt_folder, claim, settle
from happyneurons.store.artifacts import Manifest, manifest_path


def manifest(key: str, attempt: int) -> Manifest:
    return Manifest(
        job_key=key, stage="sandbox", stage_version="1", params={}, inputs={}, outputs={},
        provenance={"attempt": attempt},
    )  # fmt: skip


def test_one_of_many_processes_begins_an_attempt(store, new_job):
    key = new_job(tasks=1)

    def race(i: int) -> bool:
        try:
            return claim(store, key, f"owner-{i}", lease_s=0.1) is not None
        except SupersededError:
            return False

    with ThreadPoolExecutor(16) as pool:
        began = list(pool.map(race, range(16)))
    # A loser may outwait the winner's lease and supersede it: only one attempt may stay open.
    numbers = [int(n) for n in store.folders(f"jobs/{key}/attempts")]
    assert sum(began) == len(numbers)
    assert [n for n in numbers if attempt_end(store, key, n) is None] == [max(numbers)]


def test_superseded_attempt_cannot_publish(store, new_job):
    key = new_job(tasks=1)
    paused = claim(store, key, "paused")
    successor = claim(store, key, "successor", takeover=True)
    with pytest.raises(SupersededError):
        paused.publish(manifest(key, 1))
    assert not store.exists(manifest_path(key))
    successor.publish(manifest(key, 2))
    assert settle(store, key).provenance == {"attempt": 2}


def test_publication_whose_writer_died_halfway_is_finished(store, new_job):
    key = new_job(tasks=1)
    attempt = claim(store, key, "dies")
    attempt.end(EndState.SUCCEEDED, manifest=manifest(key, 1).model_dump(mode="json"))  # killed before the copy
    assert not store.exists(manifest_path(key))
    assert claim(store, key, "successor") is None
    assert store.exists(manifest_path(key))


def test_live_attempt_is_left_alone_and_silent_one_is_superseded(store, new_job):
    key = new_job(tasks=1)
    alive = claim(store, key, "alive")
    with ThreadPoolExecutor(1) as pool:
        rival = pool.submit(claim, store, key, "rival", lease_s=30)
        while not rival.done():
            alive.beat({})
        with pytest.raises(SupersededError, match="attempt 1 is at work"):
            rival.result()
    assert claim(store, key, "rival", lease_s=0.2).number == 2
    assert store.get_json(f"{attempt_folder(key, 1)}/end.json")["state"] == EndState.SUPERSEDED
