"""Pipelines built in Python, submitted to a real orchestrator; results as arrays."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml

import happyneurons as hpn
from happyneurons.errors import JobFailedError, UserError
from happyneurons.orchestrator.pipeline import parse_pipeline
from happyneurons.orchestrator.server import OrchestratorServer
from happyneurons.store.documents import Store


@pytest.fixture
def client(tmp_path: Path) -> Iterator[hpn.Client]:
    with OrchestratorServer(Store(str(tmp_path / "store"))) as server, hpn.connect(server.address) as client:
        yield client


def test_stages_are_methods_and_the_text_is_a_pipeline():
    p = hpn.Pipeline("tissue", "from tiles to sections")
    tiles = p.ingest(source="/data/tiles")
    montage = p.montage(tiles=tiles.tiles, job_name="mosaic", resources={"ranks": 4})
    p.gate("look", after=[montage], ask="Are the seams closed?")
    p.align(stack=montage["stack"], needs=["look"], site="local")
    document = yaml.safe_load(p.to_yaml())
    assert document["jobs"]["mosaic"] == {
        "stage": "montage", "inputs": {"tiles": "ingest.tiles"}, "resources": {"ranks": 4},
    }  # fmt: skip
    assert document["gates"] == {"look": {"after": ["mosaic"], "ask": "Are the seams closed?"}}
    assert parse_pipeline(p.to_yaml()).order == ("ingest", "mosaic", "look", "align")


def test_names_are_checked_where_they_are_written():
    p = hpn.Pipeline()
    with pytest.raises(AttributeError, match="no stage named 'nonsense'"):
        p.nonsense()
    with pytest.raises(UserError, match="no input or parameter 'tsks'; there are tasks"):
        p.sandbox(tsks=3)
    first = p.sandbox(tasks=np.int64(3))
    with pytest.raises(AttributeError, match="no output 'number'; there are numbers"):
        _ = first.number
    with pytest.raises(UserError, match="name one of its outputs"):
        p.sandbox(control=first)
    with pytest.raises(UserError, match="there is a 'sandbox' already"):
        p.sandbox(job_name="sandbox")
    assert p.sandbox().name == "sandbox-2"
    assert "ingest" in dir(p)


def test_run_and_open_the_result(client):
    p = hpn.Pipeline("squares", client=client)
    first = p.sandbox(tasks=3, job_name="small")
    p.sandbox(job_name="large", needs=[first], sweep={"tasks": [4, 5]})
    seen = []
    run = p.run(client).wait(on_event=lambda event: seen.append(event.type))
    assert seen[-1] == "run_ended"
    assert run.open("small")["rows"] == [[5]]
    assert run.open("large[5].numbers")["rows"] == [[30]]
    assert hpn.open(run.output("large[4]"))["rows"] == [[14]]
    with pytest.raises(UserError, match="no job 'medium'"):
        run.output("medium")


def test_failed_run_raises(client):
    p = hpn.Pipeline()
    p.sandbox(tasks=2, behaviour={"1": "user"})
    with pytest.raises(JobFailedError, match="the input is wrong"):
        p.run(client).wait()


def test_parameters_of_a_pipeline_are_python_values(client):
    text = "parameters: {n: null, b: null}\njobs: {a: {stage: sandbox, params: {tasks: '${n}', behaviour: '${b}'}}}\n"
    with pytest.raises(UserError, match="needs a value"):
        client.submit(text)
    run = client.submit(text, {"n": 2, "b": {"7": "true"}}).wait()
    assert run.jobs["a"].job.metrics["sum"] == 1


def test_volumes_read_like_arrays(tmp_path):
    values = np.arange(4 * 5 * 6, dtype=np.uint8).reshape(4, 5, 6)
    with h5py.File(tmp_path / "em.h5", "w") as file:
        file["em"] = values
    volume = hpn.open(f"h5://{tmp_path}/em.h5?em")
    assert volume.shape == (4, 5, 6)
    assert volume.artifact.kind == "image_volume"
    np.testing.assert_array_equal(volume[1:3, :, 2], values[1:3, :, 2])
    np.testing.assert_array_equal(volume[..., 3], values[..., 3])
    np.testing.assert_array_equal(volume[2], values[2])
    np.testing.assert_array_equal(volume[:, ::2, 1:6:2], values[:, ::2, 1:6:2])
    np.testing.assert_array_equal(np.asarray(volume), values)
    assert volume[1, 2, 3] == values[1, 2, 3]
    with pytest.raises(UserError, match="is not inside"):
        volume[0:9]


def test_an_open_pipeline_is_built_as_it_is_written():
    p = hpn.Pipeline("open")
    p.acquisition(batch=3, wait_s=20)
    tiles = p.ingest(each="batch", source="${batch}", missing="mark")
    p.stack(stacks=p.montage(each="batch", tiles=tiles.tiles).stack)
    parsed = parse_pipeline(p.to_yaml())
    assert parsed.acquisition is not None
    assert (parsed.acquisition.batch, parsed.acquisition.wait_s) == (3, 20.0)
    assert (list(parsed.templates), list(parsed.jobs)) == (["ingest", "montage"], ["stack"])
