"""Site folders against the real Balsam; `hpn site check|nodes|request|release` against a running one."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result
from integration_tests.hpc.daemons import BALSAM_ENVIRONMENT
from integration_tests.hpc.rig import QUEUE, Rig
from tests.worker.waiting import wait_for

from happyneurons.cli.main import main
from happyneurons.hpc.folders import load_site_folder, site_names
from happyneurons.hpc.init import balsam_root
from happyneurons.hpc.validate import MARKED, class_paths, render_template
from happyneurons.jobs.spec import job_uri, make_spec, save_spec
from happyneurons.stages import load_stage

LIMIT_S = 120.0

IMPORT = """
import importlib, json, sys
for path in json.load(sys.stdin):
    module, _, name = path.rpartition(".")
    assert isinstance(getattr(importlib.import_module(module), name), type), path
"""
RENDER = """
import json, os, sys
os.environ["BALSAM_SITE_PATH"] = "/hpn/site"
from balsam.site.script_template import ScriptTemplate
asked = json.load(sys.stdin)
for path, values, options in asked:
    print(json.dumps(ScriptTemplate(path).render(**values, **options)))
"""


def in_balsam(code: str, document: object) -> str:
    """Run code in the Balsam environment, as a site's agent would."""
    done = subprocess.run(
        [str(BALSAM_ENVIRONMENT / "bin" / "python"), "-c", code], input=json.dumps(document), text=True,
        capture_output=True, env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(balsam_root() / "platform")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_classes_of_all_site_folders_exist():
    paths = {path for name in site_names() for path in class_paths(load_site_folder(name)).values()}
    assert len(paths) > 8
    in_balsam(IMPORT, sorted(paths))


def test_balsams_own_renderer_makes_the_scripts_that_were_validated():
    folders = [load_site_folder(name) for name in site_names()]
    values = {**MARKED, "wall_time_min": 90, "job_mode": "mpi", "partitions": ""}
    asked = [(str(f.path / "job-template.sh"), values, f.facts.options) for f in folders]
    lines = in_balsam(RENDER, asked).splitlines()
    for folder, line in zip(folders, lines, strict=True):
        ours = render_template(folder, wall_time_min=90).splitlines()
        theirs = json.loads(line).splitlines()
        # The launcher's path is the only thing that is not known here.
        differ = [(a, b) for a, b in zip(ours, theirs, strict=True) if a != b]
        assert len(differ) == 1, folder.name
        assert differ[0][1].split(" -j ")[1] == differ[0][0].split(" -j ")[1]


@pytest.fixture
def hpn(rig: Rig, tmp_path: Path) -> Callable[..., Result]:
    """`hpn site COMMAND rig --sites FILE …`"""
    entry = {
        "executor": "balsam",
        "folder": str(rig.site_folder),
        "balsam": {"api": rig.api, "site": rig.site_name, "token_file": str(rig.token_file), "timeout_s": 5},
        "pool": {"queue": QUEUE, "max_nodes": 2, "walltime_min": 20},
    }

    def call(command: str, *args: object, **changes: dict) -> Result:
        path = tmp_path / "sites.yaml"
        changed = {**entry, **{key: {**entry[key], **value} for key, value in changes.items()}}
        path.write_text(yaml.safe_dump({rig.site_name: changed}))
        return CliRunner().invoke(main, ["site", command, rig.site_name, "--sites", str(path), *map(str, args)])

    return call


def words(result: Result) -> dict[str, str]:
    return {f["what"]: f["word"] for f in json.loads(result.stdout)}


def details(result: Result) -> dict[str, str]:
    return {f["what"]: f["detail"] for f in json.loads(result.stdout)}


def test_a_site_that_is_ready(rig: Rig, hpn: Callable[..., Result]):
    result = hpn("check", "--store", rig.new_store().uri, "--native", "--here", "--json")
    assert result.exit_code == 0, result.output
    assert set(words(result).values()) == {"OK"}
    assert set(words(result)) == {
        "site folder", "Balsam server and token", "Balsam site", "agent of the site", "application",
        "limits of the pool", "store", "stages", "two ranks",
    }  # fmt: skip


def test_a_job_of_two_ranks_goes_the_whole_way_and_leaves_nothing(rig: Rig, hpn: Callable[..., Result]):
    store = rig.new_store()
    result = hpn("check", "--store", store.uri, "--submit", "--wait-s", LIMIT_S, "--json")
    assert result.exit_code == 0, result.output
    assert "2 ranks on" in details(result)["a job of two ranks"]
    assert list(store.list("")) == []
    wait_for(lambda: not rig.slurm_queue(), "the nodes to go back", LIMIT_S)


def test_a_job_that_no_nodes_take_is_dropped(rig: Rig, hpn: Callable[..., Result]):
    store = rig.new_store()
    nothing = {"batch_jobs": [], "jobs_waiting": 0}
    wait_for(lambda: json.loads(hpn("nodes", "--json").stdout) == nothing, "what was before to end", LIMIT_S)
    rig.stop_agent()  # so that the batch job never gets to Slurm
    try:
        result = hpn("check", "--store", store.uri, "--submit", "--wait-s", 5, "--json")
    finally:
        rig.start_agent()
    assert result.exit_code == 1
    assert "did not end in time" in details(result)["a job of two ranks"]
    assert list(store.list("")) == []
    wait_for(lambda: not rig.slurm_queue(), "no nodes", LIMIT_S)
    # The agent never had it, and goes on with its work.
    assert json.loads(hpn("nodes", "--json").stdout) == nothing


def test_what_is_wrong_with_a_site_is_said(rig: Rig, hpn: Callable[..., Result], tmp_path: Path):
    wrong = hpn("check", "--json", balsam={"site": "elsewhere"})
    assert wrong.exit_code == 1
    assert f"it has: {rig.site_name}" in details(wrong)["Balsam site"]

    app = hpn("check", "--json", balsam={"app": "OtherStage"})
    assert "it has: HappyStage" in details(app)["application"]

    (tmp_path / "token").write_text("not-a-token")
    token = hpn("check", "--json", balsam={"token_file": str(tmp_path / "token")})
    assert words(token)["Balsam server and token"] == "PROBLEM"
    assert "balsam login" in details(token)["Balsam server and token"]

    queue = hpn("check", "--json", pool={"walltime_min": 1000, "project": "gold"})
    assert "at most 120 min" in details(queue)["limits of the pool"]
    assert "no project gold (it has: none)" in details(queue)["limits of the pool"]


def test_a_silent_agent_is_said(rig: Rig, hpn: Callable[..., Result], monkeypatch: pytest.MonkeyPatch):
    """The agent is stopped; the limit is lowered, because nobody waits five minutes for a test."""
    monkeypatch.setattr("happyneurons.hpc.check.AGENT_SILENT_S", 3.0)
    rig.stop_agent()
    try:
        silent = "agent of the site"
        wait_for(lambda: words(hpn("check", "--json"))[silent] == "PROBLEM", "the agent's silence", LIMIT_S)
        assert "hpn-site start" in details(hpn("check", "--json"))[silent]
    finally:
        rig.start_agent()


def test_nodes_by_hand_take_jobs_and_go_back(rig: Rig, hpn: Callable[..., Result]):
    assert "no nodes; ask for some" in hpn("nodes").stdout
    refused = hpn("request", "--nodes", 99)
    assert refused.exit_code == 2
    assert f"queue {QUEUE} gives 1 to 4 nodes; asked for 99" in refused.stderr

    asked = hpn("request", "--nodes", 1, "--walltime-min", 15, "--wait", "--wait-s", LIMIT_S, "--json")
    assert asked.exit_code == 0, asked.output
    batch_job = json.loads(asked.stdout)
    assert (batch_job["state"], batch_job["nodes"], batch_job["queue"]) == ("running", 1, QUEUE)
    assert len(rig.slurm_queue()) == 1

    # Whatever job of the site comes, they take it.
    store = rig.new_store()
    spec = make_spec(load_stage("sandbox"), inputs={}, params={"tasks": 2})
    save_spec(store, spec)
    tags = {"hpn": "byhand", "hpn_pool": rig.site_name, "hpn_hand": "yes"}
    job = rig.submit(job_uri(store, spec.key), tags=tags)
    wait_for(lambda: rig.job(job)["state"] == "JOB_FINISHED", "the job", LIMIT_S)

    table = hpn("nodes").stdout
    assert f"{batch_job['id']}" in table
    assert "hand" in table
    (shown,) = json.loads(hpn("nodes", "--json").stdout)["batch_jobs"]
    assert 0 < shown["minutes_left"] <= 15

    released = hpn("release", "--all")
    assert released.exit_code == 0, released.output
    wait_for(lambda: not rig.slurm_queue(), "the nodes to go back", LIMIT_S)
    assert str(batch_job["id"]) in hpn("nodes", "--all").stdout
