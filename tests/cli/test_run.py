"""`hpn run` and the commands around runs: exit codes, messages, JSON."""

from __future__ import annotations

import json
import re
import signal
import subprocess

import pytest

from happyneurons.client import Client

from ..worker.waiting import wait_for
from .conftest import TWO

ADDRESS = re.compile(r"run (\S+), orchestrator at (\S+), store")


def run_and_address(process: subprocess.Popen[str]) -> tuple[str, str]:
    assert process.stderr is not None
    match = ADDRESS.match(process.stderr.readline())
    assert match
    return match[1], match[2]


def test_first_run_computes_second_reuses_changed_recomputes(hpn, pipeline, control):
    path = pipeline()
    first = hpn("run", path, "--json")
    assert first.exit_code == 0, first.output
    document = json.loads(first.stdout)
    assert document["state"] == "succeeded"
    assert document["jobs"][1]["job"]["metrics"] == {"sum": 14.0}
    tasks = sorted(control.iterdir())

    second = hpn("run", path)
    assert second.exit_code == 0
    assert "nothing was computed, every job's result was there" in second.stdout
    assert sorted(control.iterdir()) == tasks

    changed = hpn("run", path, "--set", "n=5")
    assert "1 jobs computed, 1 reused" in changed.stdout
    assert re.search(r"second was computed because of params\.tasks: [34] → 5", changed.stdout)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("tasks: 3", "tsks: 3", r"hpn: .*line 5, column \d+: jobs.first.params.tsks: no such parameter; sandbox has"),
        ("tasks: 3", "tasks: -3", r"hpn: .*jobs.first.params.tasks: Input should be greater than or equal to 0"),
        ("first: {", "first: {needs: [second], ", r"hpn: .*needs itself: "),
        ("stage: sandbox", "stage: nonsense", r"hpn: .*no stage named 'nonsense'"),
        ("jobs:", "jobs: [", r"hpn: .*not valid YAML"),
        ("first: {", "first: {resources: {ranks: 4096}, ", r"hpn: .*line 5, .*first.resources: needs 4096 cores"),
        ("first: {", "first: {resources: {rnks: 2}, ", r"hpn: .*line 5, .*no such field; there are ranks, "),
    ],
)
def test_wrong_pipeline_is_one_line_and_exit_2(hpn, pipeline, own_store, old, new, message):
    result = hpn("run", pipeline(TWO.replace(old, new, 1)))
    assert result.exit_code == 2
    assert re.match(message, result.stderr)
    assert result.stderr.count("\n") == 1
    assert not (own_store / "runs").exists()


def test_wrong_requests_are_one_line_and_exit_2(hpn, pipeline, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    for arguments, message in [
        (["run", tmp_path / "nothing.yaml"], "No such file or directory"),
        (["run", pipeline(), "--store", blocked / "store"], "hpn: store file://"),
        (["run", pipeline(), "--store", "ftp://host/x"], "scheme must be one of"),
        (["run", pipeline(), "--set", "m=1"], "the pipeline has no such parameter; there are n"),
        (["run", pipeline(), "--set", "n"], "write NAME=VALUE"),
        (["run", pipeline(), "--no-watch"], "--no-watch needs an orchestrator"),
        (["run", pipeline(), "--orchestrator", "nowhere"], "write host:port"),
        (["run", pipeline(), "--cores", "1", "--sites", tmp_path / "no.yaml"], "No such file or directory"),
        (["run"], "give a PIPELINE.yaml"),
        (["run", "--nonsense"], "No such option"),
        (["status", "--store", tmp_path / "other"], "there is no store at"),
        (["approve", "RUN", "GATE"], "`hpn approve` needs a running orchestrator"),
        (["cancel", "RUN"], "hpn serve orchestrator"),
        (["nonsense"], "No such command"),
    ]:
        result = hpn(*arguments)
        assert result.exit_code == 2, (arguments, result.output)
        assert result.stderr.startswith("hpn: ")
        assert message in result.stderr
        assert result.stderr.count("\n") == 1
    assert not (tmp_path / "other").exists(), "looking creates nothing"


@pytest.mark.parametrize(("behaviour", "code"), [("fail", 1), ("user", 2)])
def test_exit_code_says_whose_fault_a_failure_is(hpn, pipeline, behaviour, code):
    result = hpn("run", pipeline(TWO.replace("tasks: 3", f"tasks: 3, behaviour: {{'1': {behaviour}}}")))
    assert result.exit_code == code
    assert "failed after" in result.stdout
    assert ("reproduce: hpn-stage run" in result.stdout) == (behaviour == "fail")


def test_orchestrator_that_is_away_is_exit_75(hpn):
    result = hpn("status", "--orchestrator", "127.0.0.1:1")
    assert result.exit_code == 75
    assert "hpn: the orchestrator at 127.0.0.1:1 does not answer" in result.stderr


def test_looking_at_a_store_needs_no_server(hpn, pipeline):
    run_id = json.loads(hpn("run", pipeline(), "--json").stdout)["id"]
    (listed,) = json.loads(hpn("status", "--json").stdout)
    assert (listed["id"], listed["state"]) == (run_id, "succeeded")
    assert run_id in hpn("status").stdout
    assert "sum=14" in hpn("status", run_id).stdout
    assert json.loads(hpn("status", run_id, "--json").stdout)["jobs"][0]["name"] == "first"
    explained = json.loads(hpn("explain", run_id, "second", "--json").stdout)
    assert explained["reasons"][0].startswith("computed")
    assert hpn("explain", run_id, "second").stdout.startswith("second: succeeded")
    assert "published" in hpn("logs", run_id, "first").stdout
    chunks = [json.loads(line) for line in hpn("logs", run_id, "first", "--json").stdout.splitlines()]
    assert chunks[0]["attempt"] == 1
    watched = hpn("watch", run_id, "--json")
    assert watched.exit_code == 0
    assert json.loads(watched.stdout.splitlines()[-1])["type"] == "run_ended"
    missing = hpn("status", "20200101-000000-abcdef")
    assert missing.exit_code == 2
    assert missing.stderr.startswith("hpn: no run '20200101-000000-abcdef'")


def test_gate_is_decided_from_another_terminal(hpn, start_hpn, pipeline, control):
    text = TWO.replace("[first]", "[look]") + "gates:\n  look: {after: [first], ask: 'Good?'}\n"
    process = start_hpn("run", pipeline(text))
    run_id, address = run_and_address(process)
    with Client(address) as client:
        wait_for(lambda: client.run(run_id).state == "waiting", "the gate")
    approved = hpn("approve", run_id, "look", "-m", "fine", "--orchestrator", address)
    assert approved.stdout.startswith(f"run {run_id}: gate look approved")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert f"hpn approve {run_id} look --orchestrator {address}" in err
    assert "gate look approved by" in err
    assert "2 jobs computed" in out


def test_submitting_to_an_orchestrator_cancel_and_retry(hpn, start_hpn, pipeline, control, tmp_path):
    port_file = tmp_path / "port"
    start_hpn("serve", "orchestrator", "--address", "127.0.0.1:0", "--port-file", port_file)
    wait_for(port_file.exists, "the orchestrator")
    address = ("--orchestrator", port_file.read_text().strip())
    text = TWO.replace("tasks: 3", "tasks: 3, behaviour: {'1': block}")
    submitted = hpn("run", pipeline(text), "--no-watch", "--request-id", "wish", *address)
    run_id = submitted.stdout.strip()
    assert hpn("run", pipeline(text), "--no-watch", "--request-id", "wish", *address).stdout.strip() == run_id
    conflict = hpn("run", pipeline(TWO), "--no-watch", "--request-id", "wish", *address)
    assert (conflict.exit_code, conflict.stderr.count("\n")) == (2, 1)
    wait_for(lambda: list(control.glob("started-1-*")), "task 1")
    assert hpn("cancel", run_id, "-m", "enough", *address).exit_code == 0
    watched = hpn("watch", run_id, *address)
    assert watched.exit_code == 1
    assert watched.stdout.strip() == f"run {run_id} cancelled: enough"
    (control / "release").touch()
    assert json.loads(hpn("retry", run_id, "--json", *address).stdout)["state"] == "running"
    assert hpn("watch", run_id, *address).exit_code == 0
    nothing = hpn("retry", run_id, *address)
    assert (nothing.exit_code, "nothing to retry" in nothing.stderr) == (2, True)
    (site,) = json.loads(hpn("site", "list", "--json", *address).stdout)
    assert (site["name"], site["available"]) == ("local", True)


def test_interrupted_run_drains_and_goes_on(hpn, start_hpn, pipeline, control):
    process = start_hpn("run", pipeline(TWO.replace("tasks: 3", "tasks: 3, behaviour: {'1': block}")))
    run_id, _ = run_and_address(process)
    wait_for(lambda: list(control.glob("started-1-*")), "task 1")
    process.send_signal(signal.SIGINT)
    # The running task gets to finish: it is released once the attempt was asked to stop.
    assert process.stderr is not None
    lines = []
    while not lines or "draining" not in lines[-1]:
        lines.append(process.stderr.readline())
        assert lines[-1], "".join(lines)
    (control / "release").touch()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75
    assert f"hpn run --resume {run_id}" in err
    resumed = hpn("run", "--resume", run_id)
    assert resumed.exit_code == 0, resumed.output
    assert f"run {run_id} succeeded" in resumed.stdout
    assert len(list(control.glob("started-0-*"))) == 2, "task 0 of each job was done once"
