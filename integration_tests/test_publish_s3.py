"""Publishing to a real S3 server: headers, a killed process, and an object that somebody damaged."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import boto3
import numpy as np

from happyneurons.publish import publish
from happyneurons.store.artifacts import load_artifact
from happyneurons.store.documents import Store
from happyneurons.store.volumes import create_volume, open_volume
from happyneurons.viewer.published import published_layers

SHAPE = (64, 64, 96)
KILLED = """
import os, signal, sys
from happyneurons.publish import publish
from happyneurons.store.artifacts import load_artifact
publish({"seg": load_artifact(sys.argv[1])}, sys.argv[2], threads=1,
        on_file=lambda done, total: os.kill(os.getpid(), signal.SIGKILL) if done == 4 else None)
"""


def test_a_killed_publication_goes_on_and_damage_is_put_right(s3_store: Store, tmp_path: Path) -> None:
    labels = np.arange(np.prod(SHAPE), dtype=np.uint64).reshape(SHAPE) // 4096
    source = (tmp_path / "labels").as_uri()
    create_volume(
        source, start_zyx=(0, 0, 0), stop_zyx=SHAPE, voxel_size_nm_xyz=(8, 8, 8), dtype="uint64",
        layer_type="segmentation", chunk_zyx=(32, 32, 32),
    ).write((0, 0, 0), labels)  # fmt: skip
    # As igneous and CloudVolume leave chunks in folders.
    plain = next((tmp_path / "labels").rglob("0-32_0-32_0-32"))
    plain.with_name(f"{plain.name}.gz").write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    killed = subprocess.run([sys.executable, "-c", KILLED, source, s3_store.uri], check=False)
    assert killed.returncode == -9
    assert not s3_store.exists("published.json")

    def put() -> tuple[int, int, int]:
        counts = publish({"seg": load_artifact(source)}, s3_store.uri).counts
        return counts.written, counts.adopted, counts.unchanged

    assert put() == (9, 4, 0)
    assert put() == (0, 0, 13)
    _, layers = published_layers(s3_store.uri)
    np.testing.assert_array_equal(open_volume(layers["seg"].data_uri).read((0, 0, 0), SHAPE), labels)

    bucket, _, prefix = s3_store.uri.removeprefix("s3://").partition("/")
    chunk = sorted(p for p in s3_store.list("data") if p.rpartition("/")[2] == "0-32_0-32_0-32")[0]
    s3 = boto3.client("s3")
    head = s3.head_object(Bucket=bucket, Key=f"{prefix}/{chunk}")
    assert head["ContentEncoding"] == "gzip", "browsers unpack it by this header"
    s3.put_object(Bucket=bucket, Key=f"{prefix}/{chunk}", Body=bytes(head["ContentLength"]))
    assert put() == (1, 0, 12)
    np.testing.assert_array_equal(open_volume(layers["seg"].data_uri).read((0, 0, 0), SHAPE), labels)
    info = f"{prefix}/{layers['seg'].data_uri.removeprefix(s3_store.uri + '/')}/info"
    assert s3.head_object(Bucket=bucket, Key=info)["ContentType"] == "application/json"
    assert json.loads(s3_store.get("published.json"))["layers"]["seg"]["files"] == 13
