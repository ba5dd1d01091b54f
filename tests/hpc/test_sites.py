"""Site folders: those that come with HAPPYNeurons are right, and wrong ones are told apart."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from happyneurons.errors import UserError
from happyneurons.executors.mapping import NodeSize, map_resources
from happyneurons.hpc.folders import load_site_folder, site_names, sites_root
from happyneurons.hpc.validate import PREFIXES, directives, render_template, validate_folder, walltime_minutes
from happyneurons.jobs.spec import Resources


def test_all_sites_of_the_issue_are_there():
    assert {"theta", "cooley", "polaris", "sophia", "crux", "aurora", "perlmutter", "slurm", "pbs", "local"} <= set(
        site_names()
    )


@pytest.mark.parametrize("name", site_names())
def test_site_folder_is_valid(name: str):
    assert validate_folder(name) == []


@pytest.mark.parametrize("minutes", [30, 60, 90, 1500])
@pytest.mark.parametrize("name", [n for n in site_names() if load_site_folder(n).facts.scheduler != "local"])
def test_schedulers_are_told_the_walltime_that_was_asked_for(name: str, minutes: int):
    folder = load_site_folder(name)
    script = render_template(folder, wall_time_min=minutes)
    found = directives(script, PREFIXES[folder.facts.scheduler])
    assert walltime_minutes(folder.facts.scheduler, found) == minutes


def test_longest_walltime_grows_with_the_batch_job_where_the_site_says_so():
    prod = load_site_folder("polaris").facts.queues["prod"]
    assert [prod.walltime_limit_min(n) for n in (10, 24, 25, 99, 100, 496)] == [180, 180, 360, 360, 1440, 1440]
    assert load_site_folder("polaris").facts.queues["debug"].walltime_limit_min(1) == 60


def test_theta_and_cooley_have_the_papers_mapping():
    theta, cooley = (load_site_folder(n).facts for n in ("theta", "cooley"))
    assert not theta.in_service
    assert not cooley.in_service
    knl = map_resources("montage", Resources(), theta.resources, NodeSize(theta.node.cores))
    assert knl.ranks + 1 == theta.node.cores == 64  # one of them coordinates
    k80 = map_resources("segment", Resources(), cooley.resources, NodeSize(cooley.node.cores, cooley.node.gpus))
    assert (k80.ranks, k80.gpus_per_rank) == (cooley.node.gpus, 1) == (2, 1)


@pytest.fixture
def broken(tmp_path: Path):
    """A copy of a site folder with some text replaced; returns what the validator says of it."""

    def check(name: str, file: str, *replaced: tuple[str, str]) -> list[str]:
        folder = tmp_path / "site"
        shutil.copytree(sites_root() / name, folder)
        text = (folder / file).read_text()
        for old, new in replaced:
            assert old in text
            text = text.replace(old, new)
        (folder / file).write_text(text)
        return validate_folder(str(folder))

    return check


PBS_TIME = '{{ "%02d:%02d:00" % (wall_time_min // 60, wall_time_min % 60) }}'
SLURM, PBS = "slurm", "polaris"


@pytest.mark.parametrize(
    ("site", "old", "new", "complaint"),
    [
        # 90 minutes as 1:90:00, a slip that job templates in the wild have.
        (PBS, PBS_TIME, "{{ wall_time_min // 60 }}:{{ wall_time_min }}:00", r"walltime.*tried 90 minutes"),
        (PBS, PBS_TIME, "{{ wall_time_min }}", "walltime"),  # seconds, for PBS
        (SLURM, "#SBATCH --time={{ wall_time_min }}", "", "walltime"),
        (SLURM, "--nodes={{ num_nodes }}", "--nodes=1", "number of nodes"),
        (SLURM, "#SBATCH --partition={{ queue }}", "", "queue"),
        (PBS, "#PBS -A {{ project }}", "", "project"),
        (PBS, '#PBS -l filesystems={{ optional_params.get("filesystems") or "home:eagle" }}', "", "filesystems"),
        (SLURM, '{% if project != "none" %}', "{% if true %}", "charges a project"),
        (SLURM, "export HPN_BATCH_END=", "HPN_BATCH_END=", "HPN_BATCH_END: ranks could not drain"),
        (SLURM, "source ./environment.sh", "", "environment.sh"),
        (SLURM, "{% for k, v in filter_tags.items() %}--tag {{ k }}={{ v }} {% endfor %}", "", "filter_tags"),
        (SLURM, "-t {{ wall_time_min }}", "-t 60", r"launcher.*-t 30"),
        (SLURM, 'cd "$BALSAM_SITE_PATH" || exit 2', 'if cd "$BALSAM_SITE_PATH"', "bash: line"),
        (SLURM, "{{ num_nodes }}", "{{ num_nodes", "job-template.sh: "),
        (SLURM, "{{ num_nodes }}", "{{ nodes }}", "'nodes' is undefined"),
        (SLURM, "#SBATCH --job-name", "cd /\n#SBATCH --job-name", "after the first command"),
        (SLURM, "qos", "quality", "option quality, which site.yaml does not list"),
        (SLURM, "#!/bin/bash", "#!/bin/bash\nexport AWS_SECRET_ACCESS_KEY=abcdef", "looks like a secret"),
    ],
)
def test_job_templates_that_a_scheduler_would_refuse_or_misread(site, old, new, complaint, broken):
    problems = broken(site, "job-template.sh", (old, new))
    assert any(re.search(complaint, p) for p in problems), problems
    assert all(p.startswith("job-template.sh") for p in problems)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("export BALSAM_TOKEN=abc123", "looks like a secret"),
        ("export URL=https://user:word@host/", "looks like a secret"),
        ("if true; then", "bash: line"),
        ('export BALSAM_TOKEN="$(cat ~/.token)"', None),
        ("export TOKENIZERS_PARALLELISM=false", None),
    ],
)
def test_environments_must_parse_and_hold_no_secret(line: str, complaint: str | None, broken):
    problems = broken("slurm", "environment.sh", ("export SLURM_OVERLAP=1", line))
    assert bool(problems) == bool(complaint)
    assert complaint is None or complaint in problems[0]


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        (("queues", "prod", "min_nodes"), 900, "min_nodes 900 is more than max_nodes"),
        (("queues", "prod", "walltime_by_nodes"), {25: 1440}, "must begin at min_nodes"),
        (("queues", "prod", "max_walltime_min"), 2000, "longest of walltime_by_nodes"),
        (("default_queue",), "fast", "default_queue 'fast' is none of the queues"),
        (("balsam", "compute_node"), "hpn_platform.NoNode", "hpn_platform has no class NoNode"),
        (("balsam", "scheduler_class"), "os.system", "neither in balsam.platform nor in hpn_platform"),
        (("resources", "segmentation"), {"ranks": 2}, "no such stage"),
        (("resources", "montage"), {"threads_per_rank": 65}, "65 threads a rank"),
        (("resources", "segment"), {"gpus_per_rank": 5}, "5 GPUs a rank, a node has 4"),
        (("node", "gpu_type"), "", "gpus without gpu_type"),
        (("notes",), "", "where the figures come from"),
        (("node", "coers"), 3, "coers: Extra inputs are not permitted"),
        (("options", "account"), "x", "option account of site.yaml does not appear"),
    ],
)
def test_facts_that_contradict_one_another(path, value, complaint, tmp_path: Path):
    folder = tmp_path / "site"
    shutil.copytree(sites_root() / "polaris", folder)
    facts = yaml.safe_load((folder / "site.yaml").read_text())
    *parents, last = path
    target = facts
    for name in parents:
        target = target[name]
    target[last] = value
    (folder / "site.yaml").write_text(yaml.safe_dump(facts))
    problems = validate_folder(str(folder))
    assert len(problems) == 1, problems
    assert complaint in problems[0]


def test_missing_files_are_named(tmp_path: Path):
    folder = tmp_path / "site"
    shutil.copytree(sites_root() / "slurm", folder)
    (folder / "job-template.sh").unlink()
    assert validate_folder(str(folder)) == ["job-template.sh is missing"]
    with pytest.raises(UserError, match="known are .*polaris"):
        load_site_folder("nowhere")


@pytest.mark.parametrize("images", ["", "/images"])
@pytest.mark.parametrize("name", site_names())
def test_environments_can_be_sourced_on_login_and_compute_nodes(name: str, images: str):
    """As agent (`set -eu`), batch script and ranks do. `module` is a stand-in: the real ones are on the systems."""
    path = load_site_folder(name).path / "environment.sh"
    source = f'module() {{ echo "module $*"; }}; set -eu; export HPN_IMAGES={images}; source {path}; echo done'
    jobs = {"SLURM_JOB_ID": "1", "PBS_JOBID": "1.pbs", "COBALT_JOBID": "1"}

    def said(code: str, **variables: str) -> list[str]:
        environment = {"PATH": "/usr/bin:/bin", "HOME": "/", **variables}
        done = subprocess.run(["bash", "-c", code], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        return done.stdout.splitlines()

    assert said(source) == ["done"], "nothing is loaded on a login node"
    *loaded, end = said(source, **jobs)
    assert end == "done"
    # Ranks have the batch script's environment but no `module`.
    again = f'{source}; unset -f module; source {path}; bash -euc "source {path}"; echo ranks'
    assert said(again, **jobs) == [*loaded, "done", "ranks"]


def test_compute_nodes_use_the_proxy_and_login_nodes_do_not():
    code = f"source {sites_root()}/polaris/environment.sh; echo ${{https_proxy:-none}}"
    for variables, expected in (({}, "none"), ({"PBS_JOBID": "7"}, "http://proxy.alcf.anl.gov:3128")):
        done = subprocess.run(["bash", "-c", code], env={"PATH": "/usr/bin:/bin", **variables}, capture_output=True)
        assert done.stdout.decode().strip() == expected
