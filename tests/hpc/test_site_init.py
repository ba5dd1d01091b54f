"""`hpn site init`: what it refuses and what it writes. A real server and site: integration_tests/hpc."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from happyneurons.cli.site import site
from happyneurons.errors import UserError
from happyneurons.hpc.folders import load_site_folder
from happyneurons.hpc.init import SitePlan, balsam_settings, check_plan, init_site, sites_entry, write_site_files
from happyneurons.orchestrator.sites import load_sites


@pytest.fixture
def plan(tmp_path: Path) -> SitePlan:
    return SitePlan(
        folder=load_site_folder("slurm"), api="https://balsam.example.org", path=tmp_path / "site",
        stores=("/data/store", "s3://lab/neurons"), balsam_python=Path(sys.executable),
        client_file=tmp_path / "client.yml", environment={"LICENCE": "a b;c"},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"api": "balsam.example.org"}, "--api"),
        ({"stores": ()}, "--store"),
        ({"stores": ("file:///my data",)}, "--store"),
        ({"path": Path("site")}, "absolute"),
        ({"name": "a;b"}, "--balsam-name"),
        ({"queue": "fast"}, "--queue fast: slurm has batch"),
        ({"balsam_python": Path("/nowhere/python")}, "requirements.txt"),
        ({"environment": {"A B": "1"}}, "--env"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(
    plan: SitePlan, change: dict[str, Any], says: str
) -> None:
    with pytest.raises(UserError, match=says):
        init_site(dataclasses.replace(plan, **change))
    assert not plan.path.exists()


def test_a_site_where_projects_are_required_needs_one(plan: SitePlan) -> None:
    folder = plan.folder.model_copy(update={"facts": plan.folder.facts.model_copy(update={"project": "required"})})
    with pytest.raises(UserError, match="--project"):
        check_plan(dataclasses.replace(plan, folder=folder))
    check_plan(dataclasses.replace(plan, folder=folder, projects=("connectome",)))


def test_settings_follow_the_folder(plan: SitePlan) -> None:
    settings = balsam_settings(dataclasses.replace(plan, projects=("connectome",), sync_s=2))
    assert settings["scheduler"]["allowed_queues"] == {
        "batch": {"max_nodes": 16, "max_walltime": 1440, "max_queued_jobs": 100}
    }
    assert settings["scheduler"]["allowed_projects"] == ["connectome"]
    assert settings["scheduler"]["sync_period"] == 2
    assert settings["launcher"]["compute_node"] == plan.folder.facts.balsam.compute_node
    assert balsam_settings(plan)["scheduler"]["allowed_projects"] == ["none"]


def test_the_environment_is_what_a_shell_reads_back(plan: SitePlan, tmp_path: Path) -> None:
    target = tmp_path / "files"
    target.mkdir()
    write_site_files(plan, target)
    shown = 'source ./environment.sh; printf "%s\\n" "$HPN_STORES" "$LICENCE" "$HPN_NODE_CORES" "$HPN_PYTHON"'
    out = subprocess.run(["bash", "-euc", shown], cwd=target, capture_output=True, text=True, check=True).stdout
    assert out.splitlines() == ["file:///data/store s3://lab/neurons", "a b;c", "32", sys.executable]
    names = {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()}
    assert names >= {"settings.yml", "job-template.sh", "hpn-rank", "hpn-site", "app.py", "platform/hpn_platform.py"}


def test_the_lines_for_the_sites_file_are_read_by_it(plan: SitePlan, tmp_path: Path) -> None:
    file = tmp_path / "sites.yaml"
    file.write_text(sites_entry(dataclasses.replace(plan, projects=("connectome",))))
    config = load_sites(file)["slurm"]
    assert (config.executor, config.folder) == ("balsam", "slurm")
    assert config.balsam is not None
    assert config.balsam.site == "happyneurons-slurm"
    assert (config.pool.queue, config.pool.project) == ("batch", "connectome")


def test_a_balsam_environment_without_balsam_is_one_line(plan: SitePlan) -> None:
    with pytest.raises(UserError, match="No module named") as caught:
        init_site(plan)  # this very Python: ours has no Balsam
    assert len(str(caught.value).splitlines()) == 1


def test_the_command_asks_how_ranks_are_run(tmp_path: Path) -> None:
    arguments = ["init", "slurm", "--api", "http://127.0.0.1:1", "--path", str(tmp_path / "s"), "--store", "file:///d"]
    arguments += ["--balsam-python", sys.executable]
    result = CliRunner().invoke(site, arguments)
    assert isinstance(result.exception, UserError)
    assert "--images" in str(result.exception)
