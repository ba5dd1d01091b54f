"""Commands for stages, sites, microscopes and viewing; and what holds for all commands."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import h5py
import numpy as np
import pytest

from happyneurons import __version__
from happyneurons.cli.main import COMMANDS, main
from happyneurons.cli.options import parse_assignments
from happyneurons.cli.view import select
from happyneurons.errors import UserError

QUICK = """
import sys
from happyneurons.cli.main import main
main(["--help"], standalone_mode=False)
heavy = {"grpc", "numpy", "rich", "pydantic", "yaml", "obstore"} & set(sys.modules)
assert not heavy, heavy
"""


def commands(group: click.Group, path: str = "hpn") -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


def test_help_imports_nothing_heavy():
    result = subprocess.run([sys.executable, "-c", QUICK], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    for name in COMMANDS:
        assert name in result.stdout


def test_every_command_takes_json_and_describes_itself():
    found = dict(commands(main))
    assert len(found) > 20
    for path, command in found.items():
        assert any("--json" in parameter.opts for parameter in command.params), path
        assert command.help, path


def test_version(hpn):
    assert hpn("version").stdout.strip() == __version__
    assert json.loads(hpn("version", "--json").stdout) == {"version": __version__}


def test_assignments_are_yaml_and_dots_nest():
    found = parse_assignments(["a.b=3", "a.c=[1, 2]", "text=s3://x/y", "flag=true"], "--param")
    assert found == {"a": {"b": 3, "c": [1, 2]}, "text": "s3://x/y", "flag": True}
    for wrong in ("a", "=1", "a=[1"):
        with pytest.raises(UserError, match="--param"):
            parse_assignments([wrong], "--param")
    with pytest.raises(UserError, match="has a value already"):
        parse_assignments(["a=1", "a.b=2"], "--param")


def test_stage_list_and_describe(hpn):
    names = [stage["name"] for stage in json.loads(hpn("stage", "list", "--json").stdout)]
    assert {"ingest", "montage", "align", "sandbox"} <= set(names)
    assert "Squares numbers" in hpn("stage", "list").stdout
    described = hpn("stage", "describe", "sandbox").stdout
    assert "tasks: integer ≥ 0 [10]. Number of tasks" in described
    assert json.loads(hpn("stage", "describe", "sandbox", "--json").stdout)["name"] == "sandbox"
    missing = hpn("stage", "describe", "nonsense")
    assert (missing.exit_code, "no stage named 'nonsense'" in missing.stderr) == (2, True)


@pytest.mark.parametrize("ranks", [1, 2])
def test_stage_run_prints_its_result_and_is_reused(hpn, ranks):
    first = hpn("stage", "run", "sandbox", "--param", "tasks=4", "-n", ranks)
    assert first.exit_code == 0, first.output
    result = json.loads(first.stdout)
    assert result["metrics"] == {"sum": 14.0}
    assert not result["reused"]
    again = json.loads(hpn("stage", "run", "sandbox", "--param", "tasks=4").stdout)
    assert again == {**result, "reused": True}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--param", "tsks=4"], 2, "hpn: stage sandbox: params.tsks: no such parameter"),
        (["--param", "tasks=-4"], 2, "params.tasks: Input should be greater than or equal to 0"),
        (["--input", "stack=file:///x"], 2, "inputs.stack: no such input; sandbox has none"),
        (["-n", "0"], 2, "ranks: Input should be greater than or equal to 1"),
        (["--param", "behaviour.1=fail"], 1, "1 tasks failed and are quarantined"),
        (["--param", "behaviour.1=user"], 2, "the input is wrong"),
    ],
)
def test_stage_run_that_cannot_work(hpn, arguments, code, message):
    result = hpn("stage", "run", "sandbox", *arguments)
    assert result.exit_code == code, result.output
    assert message in result.stderr.splitlines()[-1]


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    volume = np.ones((8, 32, 32), np.uint64)
    volume[:, :, 16:] = 2
    path = tmp_path / "labels.h5"
    with h5py.File(path, "w") as file:
        file["truth"] = volume
        file["merged"] = np.ones_like(volume)
        file["image"] = (volume * 100).astype(np.uint8)
    return path


def test_evaluate(hpn, labels):
    result = hpn("evaluate", "--segmentation", f"h5://{labels}?merged", "--truth", f"h5://{labels}?truth", "--json")
    assert result.exit_code == 0, result.output
    metrics = json.loads(result.stdout)["metrics"]
    assert metrics["voi_merge"] == pytest.approx(1.0)
    assert metrics["voi_split"] == pytest.approx(0.0)
    missing = hpn("evaluate", "--segmentation", f"h5://{labels}?nothing", "--truth", f"h5://{labels}?truth")
    assert (missing.exit_code, "no dataset 'nothing'" in missing.stderr) == (2, True)


def test_acquire_simulate(hpn, tmp_path):
    path = tmp_path / "em.h5"
    with h5py.File(path, "w") as file:
        file["em"] = np.random.default_rng(0).integers(0, 255, (2, 160, 240), dtype=np.uint8)
    folder = tmp_path / "acquisition"
    result = hpn("acquire", "simulate", f"h5://{path}?em", folder, "--distortion", "elastic_px=0", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["sections"] == [0, 1]
    assert (folder / "acquisition.json").exists()
    wrong = hpn("acquire", "simulate", f"h5://{path}?em", folder, "--tiles", "2")
    assert (wrong.exit_code, "write COLSxROWS" in wrong.stderr) == (2, True)


def test_site_list_of_a_file(hpn, tmp_path):
    sites = tmp_path / "sites.yaml"
    sites.write_text("box: {executor: local, cores: 3, memory_gb: 2, description: The box}\n")
    (site,) = json.loads(hpn("site", "list", "--sites", sites, "--json").stdout)
    assert (site["name"], site["cores"], site["memory_gb"]) == ("box", 3, 2.0)
    assert "3 cores, 2 GB" in hpn("site", "list", "--sites", sites).stdout
    sites.write_text("box: {executor: nonsense}\n")
    wrong = hpn("site", "list", "--sites", sites)
    assert (wrong.exit_code, wrong.stderr.count("\n")) == (2, 1)


def test_view_shows_the_last_images_and_labels():
    found = {
        "montage.stack": ("section_stack", "a"), "align.stack": ("section_stack", "b"),
        "volume.image": ("image_volume", "c"), "evaluate.report": ("report", "r"),
        "mesh.meshes": ("mesh_layer", "m"), "reconcile.segmentation": ("segmentation", "s"),
    }  # fmt: skip
    assert select(found, (), False) == {"volume.image": "c", "reconcile.segmentation": "s", "mesh.meshes": "m"}
    assert list(select(found, ("montage",), False)) == ["montage.stack"]
    assert "evaluate.report" not in select(found, (), True)
    with pytest.raises(UserError, match="--only nonsense"):
        select(found, ("nonsense",), False)
    with pytest.raises(UserError, match="no results"):
        select({"evaluate.report": ("report", "r")}, (), False)


def test_volumes_are_served_until_sigterm(start_hpn, labels):
    import urllib.request

    process = start_hpn("serve", "volumes", f"em=h5://{labels}?image", "--port", 0, "--json")
    assert process.stdout is not None
    url = json.loads(process.stdout.readline())["em"]
    info = json.loads(urllib.request.urlopen(f"{url}/info", timeout=30).read())
    assert info["scales"][0]["size"] == [32, 32, 8]
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
