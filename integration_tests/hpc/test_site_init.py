"""`hpn site init` at a real server, and a site without a batch system."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from integration_tests.hpc.rig import Rig
from tests.worker.waiting import wait_for

from happyneurons.hpc.folders import sites_root
from happyneurons.jobs.spec import job_uri, make_spec, save_spec
from happyneurons.stages import load_stage


def test_init_again_renews_the_site(rig: Rig) -> None:
    before = (rig.site_id(), rig.app_id())
    environment = rig.site_path / "environment.sh"
    environment.write_text("broken")
    assert "renewed" in rig.make_site()
    assert "HPN_STORES" in environment.read_text()
    assert (rig.site_id(), rig.app_id()) == before


def test_init_says_what_is_wrong_in_one_line(rig: Rig, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="has a site rig already"):
        rig.make_site(path=tmp_path / "other")
    with pytest.raises(RuntimeError, match="choose another --path"):
        rig.make_site(name="another")
    token = rig.token_file.read_text()
    try:
        rig.token_file.write_text(token.replace("token: ", "token: x"))
        with pytest.raises(RuntimeError, match="does not know BALSAM_USER"):
            rig.make_site(BALSAM_USER="nobody", BALSAM_PASSWORD="x")
        with pytest.raises(RuntimeError, match="log in"):
            rig.make_site(BALSAM_USER="", BALSAM_PASSWORD="")
        assert "renewed" in rig.make_site()  # by name and password
    finally:
        rig.token_file.write_text(token)


def test_a_machine_without_a_batch_system_is_a_site_too(rig: Rig, tmp_path: Path) -> None:
    folder, path = tmp_path / "local", rig.folder / "local-site"
    shutil.copytree(sites_root() / "local", folder)
    facts = yaml.safe_load((folder / "site.yaml").read_text())
    facts["node"] |= {"cores": 2, "memory_gb": 4}
    (folder / "site.yaml").write_text(yaml.safe_dump(facts))
    assert "made" in rig.make_site(folder, path, "local")
    site_id = int((path / ".balsam-site").read_text())
    agent = str(path / "hpn-site")
    assert _status(rig, agent) == "does not run"
    rig.daemons.run(agent, "start")
    try:
        wait_for(lambda: rig.call("GET", f"/sites/{site_id}")["allowed_queues"], "the agent", 60, every_s=0.2)
        assert _status(rig, agent) == "runs"
        store = rig.new_store()
        spec = make_spec(load_stage("sandbox"), inputs={}, params={"tasks": 5})
        save_spec(store, spec)
        apps = rig.call("GET", "/apps/", site_id=site_id)["results"]
        job = rig.submit(job_uri(store, spec.key), app_id=apps[0]["id"], ranks_per_node=3, tags={"hpn_pool": "local"})
        body = {
            "site_id": site_id, "num_nodes": 1, "wall_time_min": 10, "job_mode": "mpi", "queue": "local",
            "project": "none", "filter_tags": {"hpn_pool": "local"}, "optional_params": {},
        }  # fmt: skip
        batch = rig.call("POST", "/batch-jobs/", body)["id"]
        rig.wait_for_state(job, "JOB_FINISHED")
        assert store.get_json(f"jobs/{spec.key}/manifest.json")["provenance"]["workers"] == 2
        rig.release_nodes(batch)
        wait_for(lambda: rig.batch_job(batch)["state"] == "finished", "the batch job's end", 60, every_s=0.2)
        assert not rig.processes(str(path), "launcher.py")
    finally:
        rig.daemons.run(agent, "stop")
    wait_for(lambda: _status(rig, agent) == "does not run", "the agent's end", 60, every_s=0.2)


def _status(rig: Rig, agent: str) -> str:
    done = subprocess.run([agent, "status"], env=rig.daemons.environment, capture_output=True, text=True)
    return done.stdout.strip()
