"""The data server: compression, ranges, CORS, and nothing outside its roots."""

from __future__ import annotations

import gzip
import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

from happyneurons.errors import UserError
from happyneurons.store.documents import Store
from happyneurons.store.volumes import Hdf5Volume
from happyneurons.viewer.sources import FolderSource, Hdf5Source, StoreSource
from happyneurons.viewer.volume_server import VolumeServer

CONTENT = bytes(range(256)) * 40


@pytest.fixture
def server(tmp_path: Path) -> Iterator[VolumeServer]:
    root = tmp_path / "root"
    (root / "8_8_8").mkdir(parents=True)
    (root / "info").write_text("{}")
    (root / "8_8_8" / "plain").write_bytes(CONTENT)
    (root / "8_8_8" / "packed.gz").write_bytes(gzip.compress(CONTENT))
    (tmp_path / "secret").write_text("secret")
    (root / "link").symlink_to(tmp_path / "secret")
    store = Store("memory://")
    store.put("a/b", CONTENT)
    with VolumeServer({"vol": FolderSource(root), "remote": StoreSource(store)}) as running:
        yield running


def ask(server: VolumeServer, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=10)
    connection.request(method, path, headers=headers)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response.status, {k.lower(): v for k, v in response.getheaders()}, body


def test_files_come_with_cors_headers(server: VolumeServer) -> None:
    status, headers, body = ask(server, "/data/vol/8_8_8/plain")
    assert (status, body) == (200, CONTENT)
    assert headers["access-control-allow-origin"] == "*"
    assert "Content-Range" in headers["access-control-expose-headers"]
    status, headers, body = ask(server, "/data/vol/info", "OPTIONS")
    assert (status, body) == (204, b"")
    assert "Range" in headers["access-control-allow-headers"]
    status, headers, body = ask(server, "/data/vol/8_8_8/plain", "HEAD")
    assert (status, body, headers["content-length"]) == (200, b"", str(len(CONTENT)))


def test_compressed_files_are_served_under_their_plain_name(server: VolumeServer) -> None:
    status, headers, body = ask(server, "/data/vol/8_8_8/packed")
    assert (status, headers["content-encoding"]) == (200, "gzip")
    assert gzip.decompress(body) == CONTENT
    status, headers, body = ask(server, "/data/vol/8_8_8/packed", Range="bytes=300-309")
    assert (status, body) == (206, CONTENT[300:310])
    assert "content-encoding" not in headers


@pytest.mark.parametrize("path", ["/data/vol/8_8_8/plain", "/data/remote/a/b"])
def test_ranges(server: VolumeServer, path: str) -> None:
    size = len(CONTENT)
    for header, expected in (
        ("bytes=0-0", CONTENT[:1]),
        ("bytes=100-199", CONTENT[100:200]),
        ("bytes=10000-", CONTENT[10000:]),
        (f"bytes={size - 5}-{size + 100}", CONTENT[-5:]),
        ("bytes=-7", CONTENT[-7:]),
    ):
        status, headers, body = ask(server, path, Range=header)
        assert (status, body) == (206, expected), header
        assert headers["content-range"].endswith(f"/{size}")
    status, headers, _ = ask(server, path, Range=f"bytes={size}-")
    assert (status, headers["content-range"]) == (416, f"bytes */{size}")
    assert ask(server, path, Range="lines=1-2")[0] == 200


def test_nothing_outside_the_roots(server: VolumeServer) -> None:
    for path in ("/data/vol/../secret", "/data/vol/%2e%2e/secret", "/data/vol/8_8_8/../../../secret"):
        assert ask(server, path)[0] == 403, path
    for path in ("/data/vol/link", "/data/vol//etc/passwd", "/data/vol/8_8_8", "/data/other/info", "/", "/data/vol/no"):
        assert ask(server, path)[0] == 404, path


def test_a_token_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "info").write_text("{}")
    with VolumeServer({"vol": FolderSource(tmp_path)}, token="abc") as server:
        assert ask(server, "/data/vol/info")[0] == 403
        assert ask(server, "/abd/data/vol/info")[0] == 403
        assert ask(server, "/abc/data/vol/info")[0] == 200
        assert server.data_url("vol").endswith("/abc/data/vol")


def test_a_taken_port_is_one_clear_error(server: VolumeServer) -> None:
    with pytest.raises(UserError, match="choose another port"):
        VolumeServer({}, port=int(urlsplit(server.url).port or 0))


def test_hdf5_is_served_as_a_precomputed_volume(tmp_path: Path) -> None:
    import h5py
    from cloudvolume import CloudVolume

    labels = np.arange(70 * 40 * 30, dtype=np.uint32).reshape(70, 40, 30)
    with h5py.File(tmp_path / "l.h5", "w") as file:
        file["labels"] = labels
        file["labels"].attrs["voxel_size_nm_xyz"] = [4, 4, 40]
    source = Hdf5Source(Hdf5Volume(f"h5://{tmp_path}/l.h5?labels"), segmentation=True)
    with VolumeServer({"labels": source}) as server:
        info = json.loads(ask(server, "/data/labels/info")[2])
        assert info["scales"][0]["resolution"] == [4, 4, 40]
        volume = CloudVolume(f"precomputed://{server.data_url('labels')}", progress=False, fill_missing=False)
        np.testing.assert_array_equal(np.asarray(volume[:])[..., 0].T, labels)
        assert ask(server, "/data/labels/0/0-65_0-40_0-64")[0] == 404


def test_the_client_is_served_from_its_package(server: VolumeServer) -> None:
    pytest.importorskip("neuroglancer")
    status, headers, body = ask(server, "/v/viewer/")
    assert (status, headers["content-type"]) == (200, "text/html")
    assert b"<script" in body
    assert server.page_url({"layers": []}).startswith(f"{server.url}/v/viewer/#!")
