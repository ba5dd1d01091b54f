"""`hpn site` on site folders, and its refusals; nodes of a real Balsam are in integration_tests/hpc."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from happyneurons.hpc.folders import site_names, sites_root

BALSAM = """
here: {executor: local}
there:
  executor: balsam
  folder: slurm
  balsam: {api: "http://127.0.0.1:9", site: there, token_env: NO_SUCH_TOKEN, token_file: NOWHERE, timeout_s: 1}
"""


@pytest.fixture
def sites(tmp_path: Path) -> str:
    path = tmp_path / "sites.yaml"
    path.write_text(BALSAM.replace("NOWHERE", str(tmp_path / "nowhere")))
    return str(path)


def test_known_sites(hpn):
    result = hpn("site", "list", "--known")
    assert result.exit_code == 0, result.output
    assert all(name in result.stdout for name in site_names())
    assert "theta" in result.stdout.split("(out of service)")[-2]
    documents = {d["name"]: d for d in json.loads(hpn("site", "list", "--known", "--json").stdout)}
    assert set(documents) == set(site_names())
    assert documents["polaris"]["queues"]["prod"]["min_nodes"] == 10
    assert documents["cooley"]["in_service"] is False


def test_show_a_site_folder(hpn):
    text = hpn("site", "show", "polaris").stdout
    assert "prod [default]: 10–496 nodes, 10+ nodes 180 min" in text
    assert "killed without warning" in text
    assert "docs.alcf.anl.gov" in text
    assert json.loads(hpn("site", "show", "polaris", "--json").stdout)["container"]["command"] == "apptainer"
    refused = hpn("site", "show", "nowhere")
    assert refused.exit_code == 2
    assert "no site folder 'nowhere'" in refused.stderr


def test_validate_all_by_default_and_tell_what_is_wrong(hpn, tmp_path: Path):
    good = hpn("site", "validate")
    assert good.exit_code == 0, good.output
    assert good.stdout.splitlines() == [f"{name}: OK" for name in site_names()]
    folder = tmp_path / "mine"
    shutil.copytree(sites_root() / "slurm", folder)
    (folder / "environment.sh").write_text("if\n")
    bad = hpn("site", "validate", "slurm", str(folder))
    assert bad.exit_code == 1
    assert "environment.sh: bash: line" in bad.stdout
    document = json.loads(hpn("site", "validate", str(folder), "--json").stdout)
    assert len(document[str(folder)]) == 1


def test_check_prints_a_line_for_each_finding(hpn, tmp_path: Path):
    result = hpn("site", "check", "slurm", "--store", tmp_path / "store")
    assert result.exit_code == 0, result.output
    words = [line.split()[0] for line in result.stdout.splitlines()]
    assert words == ["OK", "SKIPPED", "OK", "SKIPPED"]
    documents = json.loads(hpn("site", "check", "theta", "--json").stdout)
    assert documents[0]["word"] == "PROBLEM"
    assert hpn("site", "check", "theta").exit_code == 1
    both = hpn("site", "check", "slurm", "--native", "--image", "x.sif")
    assert both.exit_code == 2
    assert "not both" in both.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        (("nodes", "there"), 2, "which sites file"),
        (("nodes", "nowhere", "--sites"), 2, "it has here, there"),
        (("nodes", "here", "--sites"), 2, "no Balsam site"),
        (("nodes", "there", "--sites"), None, "token"),
        (("release", "there", "--sites"), 2, "numbers of batch jobs"),
        (("release", "there", "3", "--all", "--sites"), 2, "numbers of batch jobs"),
        (("request", "there", "--sites"), 2, "--nodes"),
        (("request", "there", "--nodes", "0", "--sites"), 2, "--nodes"),
    ],
)
def test_refusals_are_one_line(arguments, code, complaint, hpn, sites, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("HPN_SITES", raising=False)
    result = hpn("site", *arguments, *([sites] if arguments[-1] == "--sites" else []))
    assert result.exit_code == code if code is not None else result.exit_code > 0
    (line,) = result.stderr.strip().splitlines()
    assert complaint in line
