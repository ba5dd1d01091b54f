"""Promises of an attempt, on real processes and real MPI: journal, drain, cancel, quarantine, poison."""

from __future__ import annotations

import os
import re
import signal

import pytest

from happyneurons.errors import EXIT_USAGE, JobFailedError, UserError
from happyneurons.jobs.attempts import EndState, attempt_end, attempt_numbers, claim, request_cancel, settle, supersede
from happyneurons.jobs.journal import Entry, JournalWriter, read_journal
from happyneurons.jobs.spec import make_spec, save_spec
from happyneurons.orchestrator.driver import INFRASTRUCTURE_RETRIES
from happyneurons.stages import load_stage
from happyneurons.store.artifacts import load_artifact
from happyneurons.store.documents import Store
from happyneurons.worker.local import run_stage
from happyneurons.worker.run import WALLTIME_MARGIN_S, RunOptions, run_job_here
from happyneurons.worker.suspects import find_suspects

from .waiting import wait_for


def started(control, i: int) -> list[str]:
    return [p.name for p in control.glob(f"started-{i}-*")]


def output_bytes(store: Store, key: str) -> dict[str, bytes]:
    return {p.rsplit("/", 1)[-1]: store.get(p) for p in store.list(f"artifacts/{key}")}


def test_result_is_published_with_provenance(store):
    manifest = run_stage(store, "sandbox", params={"tasks": 5})
    assert manifest.metrics == {"sum": 30}
    assert manifest.provenance["tasks_computed"] == 6
    assert {"numpy", "happyneurons"} <= set(manifest.provenance["packages"]) | {"happyneurons"}
    artifact = load_artifact(manifest.outputs["numbers"].uri)
    assert artifact.store().get_json("table.json")["rows"] == [[30]]


def test_same_key_is_not_computed_twice(store, control):
    params = {"tasks": 3, "control": str(control)}
    run_stage(store, "sandbox", params=params)
    before = sorted(control.iterdir())
    run_stage(store, "sandbox", params=params)
    assert sorted(control.iterdir()) == before


def test_digest_does_not_depend_on_place_or_time(tmp_path):
    a = run_stage(Store(str(tmp_path / "a")), "sandbox", params={"tasks": 4})
    b = run_stage(Store(str(tmp_path / "b")), "sandbox", params={"tasks": 4})
    assert a.job_key == b.job_key
    assert a.outputs["numbers"].digest == b.outputs["numbers"].digest


@pytest.mark.parametrize("ranks", [1, 2])
def test_killed_job_is_finished_without_redoing_journaled_tasks(store, control, new_job, start_attempt, ranks):
    key = new_job(tasks=12, control=str(control), behaviour={"8": "block"})
    process = start_attempt(key, ranks=ranks)
    wait_for(lambda: started(control, 8), "task 8")
    wait_for(lambda: len(read_journal(store, key, "work")) >= 8, "the journal")
    journaled = set(read_journal(store, key, "work"))
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    (control / "release").touch()
    before = {name: len(started(control, int(name))) for name in journaled}

    assert start_attempt(key, ranks=ranks, takeover=True).wait(60) == 0
    assert {name: len(started(control, int(name))) for name in journaled} == before
    assert settle(store, key).provenance["tasks_resumed"] == len(journaled)

    undisturbed = Store(store.uri + "-undisturbed")
    expected = run_stage(
        undisturbed, "sandbox", params={"tasks": 12, "control": str(control), "behaviour": {"8": "block"}}
    )
    assert output_bytes(store, key) == output_bytes(undisturbed, expected.job_key)
    assert settle(store, key).outputs["numbers"].digest == expected.outputs["numbers"].digest


@pytest.mark.parametrize("ranks", [1, 2])
def test_sigterm_drains(store, control, new_job, start_attempt, ranks):
    key = new_job(tasks=50, control=str(control), behaviour={"5": "block"})
    process = start_attempt(key, ranks=ranks)
    wait_for(lambda: started(control, 5), "task 5")
    process.terminate()
    (control / "release").touch()
    assert process.wait(60) == 75
    assert attempt_end(store, key, 1)["state"] == EndState.DRAINED
    assert "0005" in read_journal(store, key, "work"), "the running task was allowed to finish, and is kept"
    assert start_attempt(key, ranks=ranks).wait(60) == 0
    assert len(started(control, 5)) == 1


@pytest.mark.parametrize("ranks", [1, 2])
def test_cancel_marker_ends_the_attempt(store, control, new_job, start_attempt, ranks):
    key = new_job(tasks=50, control=str(control), behaviour={"5": "block"})
    process = start_attempt(key, ranks=ranks)
    wait_for(lambda: started(control, 5), "task 5")
    request_cancel(store, key, 1, "not needed")
    assert process.wait(60) == 1
    assert attempt_end(store, key, 1)["state"] == EndState.CANCELLED
    assert settle(store, key) is None


def test_walltime_drains_before_its_end(store, control, new_job, start_attempt):
    key = new_job(tasks=5, control=str(control))
    assert start_attempt(key, walltime_min=0.01).wait(60) == 75
    assert attempt_end(store, key, 1)["state"] == EndState.DRAINED


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_long_task_hears_of_the_drain_and_gives_up_in_time(store, control, new_job, start_attempt, ranks):
    key = new_job(tasks=3, control=str(control), behaviour={"1": "ask"})
    process = start_attempt(key, ranks=ranks)
    wait_for(lambda: started(control, 1), "task 1")
    process.terminate()
    assert process.wait(60) == 75
    assert (control / "gave-up-1").exists()
    end = attempt_end(store, key, 1)
    assert end["state"] == EndState.DRAINED
    assert "abandoned" not in end["message"]
    assert "0001" not in read_journal(store, key, "work")
    (control / "release").touch()
    assert start_attempt(key, ranks=ranks).wait(60) == 0
    assert settle(store, key).provenance["tasks_quarantined"] == []


def test_the_walltime_is_noticed_amid_a_task(store, control, new_job, monkeypatch):
    monkeypatch.setattr("happyneurons.worker.context.LOOK_S", 0.05)
    key = new_job(tasks=1, control=str(control), behaviour={"0": "ask"})
    options = RunOptions(walltime_s=WALLTIME_MARGIN_S + 2, heartbeat_s=0.05)
    assert run_job_here(store, key, options) == 75
    assert (control / "gave-up-0").exists()
    assert attempt_end(store, key, 1)["state"] == EndState.DRAINED
    assert "walltime" in attempt_end(store, key, 1)["message"]


def test_poison_task_is_quarantined_and_the_rest_done(store, control):
    params = {"tasks": 6, "control": str(control), "behaviour": {"2": "fail"}}
    with pytest.raises(JobFailedError, match=r"1 tasks failed .*--task work/0002"):
        run_stage(store, "sandbox", params=params)
    manifest = run_stage(store, "sandbox", params=params, allow_failed_tasks=1)
    assert manifest.metrics["sum"] == 0 + 1 + 9 + 16 + 25
    assert manifest.provenance["tasks_quarantined"] == ["work/0002"]


def test_a_full_disk_that_was_emptied_costs_nothing(store, control):
    params = {"tasks": 3, "control": str(control), "behaviour": {"1": "nospace"}}
    with pytest.raises(JobFailedError, match="no space left"):
        run_stage(store, "sandbox", params=params)
    (control / "space").touch()
    assert run_stage(store, "sandbox", params=params).metrics["sum"] == 5


def test_what_was_made_without_a_quarantined_task_is_made_again_with_it(store, control, new_job):
    """Both when the job failed before later rounds, and when these had been carried out without the task."""
    for tasks, sum_is_there in ((3, False), (4, True)):
        (control / "mended").unlink(missing_ok=True)
        key = new_job(tasks=tasks, control=str(control), behaviour={"1": "broken"})
        assert run_job_here(store, key) == 1
        assert not read_journal(store, key, "sum"), "nothing is made without a task that is not allowed to fail"
        if sum_is_there:  # as after a later round that failed for itself
            writer = JournalWriter(store, key, 1)
            writer.add("sum", Entry("sum", {"sum": 13}))
            writer.flush()
        (control / "mended").touch()
        assert run_job_here(store, key, RunOptions(retry_quarantined=True)) == 0
        assert settle(store, key).metrics["sum"] == sum(i * i for i in range(tasks))


def test_full_disk_is_not_the_tasks_fault(store, control, new_job, start_attempt):
    key = new_job(tasks=3, control=str(control), behaviour={"1": "nospace"})
    assert start_attempt(key).wait(60) == 75
    end = attempt_end(store, key, 1)
    assert end["state"] == EndState.ERROR
    assert "no space left" in end["message"]


def test_user_error_ends_the_job_with_exit_2(store, control, new_job, start_attempt):
    key = new_job(tasks=3, behaviour={"1": "user"})
    assert start_attempt(key).wait(60) == 2
    assert attempt_end(store, key, 1)["message"] == "the input is wrong"


@pytest.mark.parametrize("ranks", [1, 2, 6])
def test_task_that_kills_its_rank_is_found_and_quarantined(store, control, new_job, start_attempt, ranks):
    key = new_job(allow_failed_tasks=1, tasks=8, control=str(control), behaviour={"3": "die"})
    codes = []
    for _ in range(1 + INFRASTRUCTURE_RETRIES):
        codes.append(start_attempt(key, ranks=ranks, takeover=True).wait(60))
        if codes[-1] == 0:
            break
    assert codes[-1] == 0, f"exit codes {codes}"
    manifest = settle(store, key)
    assert manifest.provenance["tasks_quarantined"] == ["work/0003"]
    assert manifest.metrics["sum"] == sum(i * i for i in range(8) if i != 3)


def test_crash_of_an_innocent_task_does_not_quarantine_it(store, control, new_job, start_attempt):
    key = new_job(tasks=8, control=str(control), behaviour={"3": "die-once"})
    assert start_attempt(key, ranks=2).wait(60) != 0
    assert start_attempt(key, ranks=2, takeover=True).wait(60) == 0
    assert settle(store, key).provenance["tasks_quarantined"] == []
    assert attempt_numbers(store, key) == [1, 2]


def test_an_allocation_that_ended_makes_no_task_suspect(store, new_job):
    key = new_job(tasks=3)
    for ended in (True, True, False, False):
        attempt = claim(store, key, "me")
        attempt.beat({"round": "work", "in_flight": ["0001"], "caution": "none"})
        supersede(store, key, attempt.number, "other", "killed", allocation_ended=ended)
    assert not find_suspects(store, key, 3).careful
    assert find_suspects(store, key, 4).careful
    assert find_suspects(store, key, 5).seen("work", "0001")


def test_many_suspects_are_narrowed_down_by_groups(store, new_job):
    key = new_job(tasks=3)
    flights = [("none", range(64)), ("none", range(64)), ("group", range(8, 16)), ("alone", [9])]
    for caution, tasks in flights:
        attempt = claim(store, key, "me")
        attempt.beat({"round": "work", "in_flight": [f"{t:04d}" for t in tasks], "caution": caution})
        supersede(store, key, attempt.number, "other", "killed")
    many = find_suspects(store, key, 3)
    assert (len(many.under_way), many.at_a_time(64), many.at_a_time(3)) == (64, 8, 1)
    few = find_suspects(store, key, 4)
    assert (len(few.under_way), few.at_a_time(8)) == (8, 1)
    assert find_suspects(store, key, 5).died_alone("work", "0009")
    assert not find_suspects(store, key, 5).died_alone("work", "0010")


@pytest.mark.parametrize("ranks", [1, 2, 5])
def test_bytes_do_not_depend_on_the_number_of_ranks(store, new_job, start_attempt, tmp_path, ranks):
    expected = run_stage(Store(str(tmp_path / "serial")), "sandbox", params={"tasks": 30})
    key = new_job(tasks=30)
    assert start_attempt(key, ranks=ranks).wait(90) == 0
    assert settle(store, key).outputs["numbers"].digest == expected.outputs["numbers"].digest


def test_wrong_parameters_are_refused_before_anything_is_written(store):
    with pytest.raises(UserError, match=r"params\.tasks: .*greater than or equal to 0; params\.colour: no such"):
        run_stage(store, "sandbox", params={"tasks": -1, "colour": "red"})
    assert list(store.list("")) == []


def test_options_do_not_change_the_result(store, tmp_path):
    a = run_stage(store, "sandbox", params={"tasks": 4}, options=RunOptions(threads=2))
    b = run_stage(Store(str(tmp_path / "other")), "sandbox", params={"tasks": 4})
    assert a.outputs["numbers"].digest == b.outputs["numbers"].digest


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"stage": "nosuch"}, "no stage named 'nosuch'"),
        (
            {"stage_version": "0.9"},
            r"is for version 0\.9 of sandbox, installed here is .*: use an image of the release",
        ),
    ],
)
def test_an_image_without_the_stage_begins_no_attempt(store, start_attempt, other, message):
    spec = make_spec(load_stage("sandbox"), inputs={}, params={}).model_copy(update=other)
    save_spec(store, spec)
    process = start_attempt(spec.key, ranks=2)
    said = process.communicate(timeout=60)[1].decode()
    assert process.returncode == EXIT_USAGE
    assert re.search(message, said)
    assert attempt_numbers(store, spec.key) == []
    with pytest.raises(UserError, match=message):
        run_job_here(store, spec.key)
