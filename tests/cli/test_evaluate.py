"""`hpn evaluate` and the way from its report to the worst mistakes in Neuroglancer."""

from __future__ import annotations

import json
import signal
import urllib.request
from pathlib import Path
from urllib.parse import unquote

import h5py
import numpy as np
import pytest

from happyneurons.cli.view_worst import report_of_run
from happyneurons.errors import UserError

pytest.importorskip("neuroglancer")


@pytest.fixture
def labels(tmp_path: Path) -> str:
    """Three bodies. The first is cut in two, the other two are merged."""
    truth, found = np.zeros((2, 16, 48, 64), np.uint64)
    for body, y in ((4, 0), (5, 16), (6, 32)):
        truth[:, y : y + 14] = body
    found[:, :14, :40], found[:, :14, 40:] = 71, 72
    found[:, 16:46] = 73
    path = tmp_path / "labels.h5"
    with h5py.File(path, "w") as file:
        for name, volume in (("truth", truth), ("found", found)):
            file[name] = volume
            file[name].attrs["voxel_size_nm_xyz"] = [8, 8, 40]
    return f"h5://{path}"


def states(worst: list[dict]) -> list[dict]:
    return [json.loads(unquote(row["url"].partition("#!")[2])) for row in worst]


def test_from_an_evaluation_to_its_worst_mistakes(hpn, start_hpn, labels):
    scored = hpn("evaluate", "--segmentation", f"{labels}?found", "--truth", f"{labels}?truth", "--json")
    assert scored.exit_code == 0, scored.output
    report = json.loads(scored.stdout)["outputs"]["report"]
    viewer = start_hpn("view", report, "--worst", "3", "--json", "--no-browser")
    assert viewer.stdout is not None
    text = ""
    while not text.rstrip().endswith("\n}"):
        text += viewer.stdout.readline()
    shown = json.loads(text)
    # The links lead to data that is served.
    source = states(shown["worst"])[0]["layers"][0]["source"][0].removeprefix("precomputed://")
    assert json.loads(urllib.request.urlopen(f"{source}/info", timeout=30).read())["type"] == "segmentation"
    viewer.send_signal(signal.SIGTERM)
    assert viewer.wait(30) == 0
    merger, split = shown["worst"]
    assert (merger["kind"], merger["segments"], sorted(merger["labels"])) == ("merger", [73], [5, 6])
    assert (split["kind"], split["segments"], split["labels"]) == ("split", [71, 72], [4])
    assert "split: object 4, 2 segments" in split["text"]
    for row, state in zip((merger, split), states(shown["worst"]), strict=True):
        layers = {layer["name"]: layer["segments"] for layer in state["layers"]}
        assert layers == {"segmentation": [str(s) for s in row["segments"]], "truth": [str(t) for t in row["labels"]]}
        assert state["position"] == [v + 0.5 for v in row["position_xyz"]]
    # The cut-off end lies beyond x = 40; that is where the link leads.
    assert split["position_xyz"][0] >= 40
    assert split["demo_url"].startswith("https://neuroglancer-demo.appspot.com/")


def test_run_length_from_the_truth(hpn, labels):
    pytest.importorskip("kimimaro")
    result = hpn(
        "evaluate", "--segmentation", f"{labels}?found", "--truth", f"{labels}?truth", "--erl",
        "--param", "merger_nodes=20", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    metrics = json.loads(result.stdout)["metrics"]
    assert metrics["skeletons"] == 3
    assert metrics["skeleton_mergers"] == 1
    assert 0 < metrics["erl_nm"] < metrics["erl_max_nm"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give --truth or --skeletons"),
        (("--truth", "h5://x?y", "--skeletons", "swc://x", "--erl"), "leave it out if there are --skeletons"),
        (("--skeletons", "swc:///nowhere"), "there is no folder /nowhere"),
    ],
)
def test_what_cannot_be_compared_is_refused(hpn, labels, arguments, message):
    result = hpn("evaluate", "--segmentation", f"{labels}?found", *arguments)
    assert (result.exit_code, message in result.stderr) == (2, True), result.output


def test_worst_needs_a_report(hpn, labels):
    result = hpn("view", f"{labels}?found", "--worst", "3", "--no-browser")
    assert (result.exit_code, "--worst goes with a run that has an evaluation" in result.stderr) == (2, True)
    assert report_of_run({"a.report": ("report", "u"), "b.report": ("report", "v")}, ()) == "v"
    assert report_of_run({"a.report": ("report", "u"), "b.report": ("report", "v")}, ("a",)) == "u"
    with pytest.raises(UserError, match="no report"):
        report_of_run({"volume.image": ("image_volume", "c")}, ())
