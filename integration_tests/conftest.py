"""Real parts for the integration tests: an S3 server for the session."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from integration_tests.ports import is_free

from happyneurons.errors import HappyError
from happyneurons.store.documents import Store

HERE = Path(__file__).resolve().parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.integration)


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on, 10,000 below which are free, too: weed takes gRPC ports at +10,000."""
    found: list[int] = []
    for port in range(20_000 + os.getpid() % 5_000, 50_000):
        if all(is_free(p) for p in (port, port + 10_000)):
            found.append(port)
            if len(found) == count:
                return found
    raise RuntimeError("no free ports")


@dataclass(frozen=True)
class S3Server:
    """A running S3 server. `environment` is what a process needs to use `s3://BUCKET/…` on it."""

    endpoint: str
    bucket: str
    environment: dict[str, str]


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """SeaweedFS on free ports, with one bucket; this process's environment points to it meanwhile."""
    folder = Path(tempfile.mkdtemp(prefix="hpn-weed-"))
    master, volume, filer, s3, admin = free_ports(5)
    # The tests' own key may not make buckets: with an Admin's, weed makes any bucket that is written to.
    identities = [_identity("admin", "Admin"), _identity("tests", "Read", "Write", "List", "Tagging")]
    (folder / "s3.json").write_text(json.dumps({"identities": identities}))
    weed = Path(sys.executable).with_name("weed")
    command = [
        str(weed), "mini", f"-dir={folder}/data", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-master.port={master}",
        f"-volume.port={volume}", f"-filer.port={filer}", f"-s3.port={s3}", f"-s3.config={folder}/s3.json",
        f"-admin.port={admin}", "-webdav=false", "-admin.ui=false",
    ]  # fmt: skip
    (folder / "data").mkdir()
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{s3}",
        "AWS_ACCESS_KEY_ID": "tests",
        "AWS_SECRET_ACCESS_KEY": "tests-secret",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    before = {name: os.environ.get(name) for name in environment}
    with (folder / "weed.log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
    try:
        os.environ.update(environment)
        _make_bucket(environment["AWS_ENDPOINT_URL"], "neurons", server, folder / "weed.log")
        yield S3Server(environment["AWS_ENDPOINT_URL"], "neurons", environment)
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        server.kill()  # its orderly end takes ten seconds
        server.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _identity(name: str, *actions: str) -> dict[str, object]:
    credentials = {"accessKey": name, "secretKey": f"{name}-secret"}
    return {"name": name, "credentials": [credentials], "actions": list(actions)}


def _make_bucket(endpoint: str, bucket: str, server: subprocess.Popen[bytes], log: Path) -> None:
    """Waits until the server answers: boto3's own retries are the waiting."""
    import boto3
    from botocore.config import Config

    retries = Config(retries={"total_max_attempts": 12, "mode": "standard"}, connect_timeout=5, read_timeout=30)
    client = boto3.client(
        "s3", endpoint_url=endpoint, config=retries, aws_access_key_id="admin", aws_secret_access_key="admin-secret"
    )
    try:
        client.create_bucket(Bucket=bucket)
    except Exception as error:
        state = server.poll()
        raise RuntimeError(f"weed does not answer (exit {state}): {error}\n{log.read_text()[-3000:]}") from error


@pytest.fixture
def s3_store(s3_server: S3Server, request: pytest.FixtureRequest) -> Store:
    """An empty root of its own for each test."""
    name = request.node.name.translate(str.maketrans("[]/ ", "----"))
    store = Store(f"s3://{s3_server.bucket}/{name}")
    try:
        store.check_writable()
    except HappyError as error:
        raise RuntimeError(f"the S3 server started, but: {error}") from error
    return store
