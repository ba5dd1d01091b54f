"""The page of a run: everything on it, escaped, and nothing from elsewhere."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from happyneurons.client.runs import Run
from happyneurons.errors import UserError
from happyneurons.gallery import write_gallery
from happyneurons.store.artifacts import load_artifact
from happyneurons.store.volumes import create_volume
from happyneurons.v1 import jobs_pb2, pipelines_pb2

NASTY = "<script>alert('x')</script>"


class Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.found += [value for name, value in attrs if name in ("src", "href")]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    uri = (tmp_path / "em").as_uri()
    create_volume(
        uri, start_zyx=(0, 0, 0), stop_zyx=(4, 64, 64), voxel_size_nm_xyz=(8, 8, 40), dtype="uint8", layer_type="image",
    ).write((0, 0, 0), np.full((4, 64, 64), 90, np.uint8))  # fmt: skip
    message = pipelines_pb2.Run(id="R1", name=NASTY, state=pipelines_pb2.RUN_STATE_FAILED, message=f"it {NASTY}")
    message.pipeline.yaml = f"name: {NASTY}"
    for value in (1.0, 2.0):
        job = message.jobs.add(name=f"volume[{value:g}]")
        job.job.state = jobs_pb2.JOB_STATE_SUCCEEDED
        job.job.spec.stage = "volume"
        job.job.spec.params.update({"spacing": value, "note": NASTY})
        job.job.metrics["mean"] = 0.25 * value
        job.job.start_time.FromSeconds(100)
        job.job.end_time.FromSeconds(130)
        job.job.outputs["image"].CopyFrom(jobs_pb2.Job().outputs["image"].__class__(kind="image_volume", uri=uri))
    message.jobs.add(name="mesh").job.state = jobs_pb2.JOB_STATE_FAILED
    message.jobs[-1].job.failure.message = NASTY
    message.gates.add(name="look", state=pipelines_pb2.GATE_STATE_APPROVED, question=NASTY, decided_by="Ada")
    return Run(None, message)  # type: ignore[arg-type]


def test_everything_is_on_the_page_and_nothing_runs(run: Run, tmp_path: Path) -> None:
    page = write_gallery(run, tmp_path / "page", max_px=64)
    text = page.read_text()
    links = Links()
    links.feed(text)
    assert "script" not in links.tags
    assert text.count("&lt;script&gt;") >= 6
    for part in ("spacing", "0.25", "Ada", "30.0 s", "approved", "failed", "as CSV"):
        assert part in text, part
    assert "64 × 64 × 4 voxels" in text
    for found in links.found:
        assert not re.match(r"[a-z]+:|//", found), "needs nothing from elsewhere"
        if not found.startswith("#"):
            assert (page.parent / found.replace("%5B", "[").replace("%5D", "]")).is_file(), found
    assert links.tags.count("img") >= 3
    assert (tmp_path / "page" / "tables" / "volume.csv").read_text().startswith("spacing,state,seconds")
    write_gallery(run, tmp_path / "page", max_px=64)


def test_links_lead_to_what_was_published(run: Run, tmp_path: Path) -> None:
    artifact = load_artifact((tmp_path / "em").as_uri()).model_copy(update={"data_uri": "https://lab.org/em"})
    page = write_gallery(run, tmp_path / "page", published={"em": artifact}, draw=False)
    assert page.read_text().count("neuroglancer-demo.appspot.com/#!") == 3, "the run's and one for each output"
    assert not list((tmp_path / "page" / "pictures").iterdir())


def test_a_folder_with_something_else_is_left_alone(run: Run, tmp_path: Path) -> None:
    (tmp_path / "page").mkdir()
    (tmp_path / "page" / "thesis.tex").write_text("")
    with pytest.raises(UserError, match="something else"):
        write_gallery(run, tmp_path / "page")
