"""Results in a real browser: Neuroglancer's packaged client draws image, segments, meshes, skeletons."""

from __future__ import annotations

import base64
import fcntl
import io
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from happyneurons.store.artifacts import load_artifact
from happyneurons.store.documents import Store
from happyneurons.store.volumes import create_volume
from happyneurons.viewer import Viewer, start_viewer
from happyneurons.worker.local import run_stage

pytestmark = pytest.mark.integration

WIDTH, HEIGHT = 1000, 800
FLAGS = (
    "--headless=new", "--no-sandbox", "--use-angle=swiftshader", "--use-gl=angle", "--enable-unsafe-swiftshader",
    "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars", "--remote-debugging-pipe",
)  # fmt: skip
# True when every visible chunk has been loaded and drawn, some frames in a row; false if that never comes.
READY = """new Promise(resolve => {
  setTimeout(() => resolve(false), 120000);
  let calm = 0;
  const look = () => {
    calm = window.viewer && window.viewer.isReady() ? calm + 1 : 0;
    calm > 10 ? resolve(true) : requestAnimationFrame(look);
  };
  look();
})"""


class Browser:
    """Chromium, driven over its debugging pipe (file descriptors 3 and 4; JSON ended by NUL)."""

    def __init__(self, executable: str, profile: Path) -> None:
        # High numbers, so that 3 and 4 are free in the child.
        child_in, to_child = (_high(fd) for fd in os.pipe())
        from_child, child_out = (_high(fd) for fd in os.pipe())

        def connect() -> None:
            os.dup2(child_in, 3)
            os.dup2(child_out, 4)

        self._process = subprocess.Popen(
            [executable, *FLAGS, f"--window-size={WIDTH},{HEIGHT}", f"--user-data-dir={profile}", "about:blank"],
            preexec_fn=connect, pass_fds=(3, 4), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(child_in)
        os.close(child_out)
        self._out, self._in = os.fdopen(to_child, "wb", 0), os.fdopen(from_child, "rb")
        self._number = 0
        self.problems: list[str] = []

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(20)
        self._out.close()
        self._in.close()

    def open(self, url: str) -> None:
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Emulation.setDeviceMetricsOverride", session=True, width=WIDTH, height=HEIGHT,
                  deviceScaleFactor=1, mobile=False)  # fmt: skip
        self.call("Runtime.enable", session=True)
        self.call("Page.enable", session=True)
        self.call("Page.navigate", session=True, url=url)

    def evaluate(self, expression: str) -> Any:
        answer = self.call(
            "Runtime.evaluate", session=True, expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def hide(self, layer: str) -> None:
        """Hide a layer of Neuroglancer, and wait until the page is drawn without it."""
        self.evaluate(f"viewer.layerManager.getLayerByName({json.dumps(layer)}).setVisible(false)")
        assert self.evaluate(READY) is True

    def screenshot(self) -> np.ndarray:
        from PIL import Image

        data = base64.b64decode(self.call("Page.captureScreenshot", session=True)["data"])
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))

    def call(self, method: str, *, session: bool = False, **params: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if session:
            message["sessionId"] = self._session
        self._out.write(json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("method") == "Runtime.exceptionThrown":
                self.problems.append(json.dumps(answer["params"])[:500])
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def _read(self) -> dict[str, Any]:
        data = bytearray()
        while (byte := self._in.read(1)) != b"\0":
            assert byte, "the browser has ended"
            data += byte
        return json.loads(data)


def _high(fd: int) -> int:
    copy = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 20)
    os.close(fd)
    return copy


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if executable is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    running = Browser(executable, tmp_path / "profile")
    yield running
    running.close()


@pytest.fixture
def requests() -> list[tuple[str, str, int]]:
    return []


@pytest.fixture
def viewer(tmp_path: Path, shared_data: Path, requests: list[tuple[str, str, int]]) -> Iterator[Viewer]:
    import h5py

    pytest.importorskip("neuroglancer")
    box = np.s_[0:64, 60:156, 60:188]
    with h5py.File(shared_data / "fib25" / "em.h5") as em, h5py.File(shared_data / "fib25/labels_z000-128.h5") as gt:
        parts = {"em": (em["em"][box], "image"), "neurons": (gt["labels"][box].astype(np.uint64), "segmentation")}
    parts["neurons"][0][:, :, 64:] = 0  # the right half stays plain image
    artifacts = {}
    for name, (array, kind) in parts.items():
        uri = (tmp_path / name).as_uri()
        create_volume(
            uri, start_zyx=(10, 20, 30), stop_zyx=tuple(np.add((10, 20, 30), array.shape)),
            voxel_size_nm_xyz=(10, 10, 10), dtype=str(array.dtype), layer_type=kind, chunk_zyx=(32, 32, 32),
        ).write((10, 20, 30), array)  # fmt: skip
        artifacts[name] = load_artifact(uri)
    store = Store((tmp_path / "store").as_uri())
    for stage, output, params in (
        ("mesh", "mesh", {"max_error_nm": 20, "levels": 3, "min_chunk_nm": 300}),
        ("skeletonize", "skeletons", {"const_nm": 100, "dust_threshold_voxels": 2000}),
    ):
        manifest = run_stage(store, stage, inputs={"segmentation": artifacts["neurons"].uri}, params=params)
        artifacts[output] = load_artifact(manifest.outputs[output].uri)
    running = start_viewer(artifacts, observer=lambda *request: requests.append(request))
    yield running
    running.stop()


def test_image_segments_meshes_and_skeletons_are_drawn(
    browser: Browser, viewer: Viewer, requests: list[tuple[str, str, int]], tmp_path: Path
) -> None:
    browser.open(viewer.url)
    assert browser.evaluate(READY) is True
    picture = browser.screenshot()
    if folder := os.environ.get("HPN_SCREENSHOTS"):
        from PIL import Image

        Image.fromarray(picture).save(Path(folder) / "neuroglancer.png")
    assert browser.problems == []

    answered = {path.split("/data/", 1)[1]: status for _, path, status in requests if "/data/" in path}
    assert {status for path, status in answered.items() if "-" in path.rpartition("/")[2]} == {200}, "chunks"
    for layer in ("em", "neurons"):
        assert sum(path.startswith(f"{layer}/10.0_10.0_10.0/") for path in answered) > 4, layer
    label = viewer.state["layers"][1]["segments"][0]
    assert answered[f"mesh/{label}.index"] == 200
    assert answered[f"mesh/{label}"] in (200, 206)
    assert answered[f"skeletons/{label}"] == 200

    # 4panel: xy upper left, xz upper right, 3D lower left, yz lower right; bars above and beside.
    h, w = picture.shape[:2]
    spread = picture.astype(int).max(2) - picture.astype(int).min(2)
    xy, in_3d = np.s_[80 : h // 2 - 40, 20 : w // 2 - 40], np.s_[h // 2 + 40 : h - 40, 20 : w // 2 - 40]
    left, right = np.hsplit(spread[xy], [(w // 2 - 60) // 2])
    assert (left > 40).mean() > 0.3, "segments are coloured"
    assert (right > 40).mean() < 0.1, "where there are none the image is grey"
    grey = picture[xy][:, -(w // 6) :].mean(axis=2)
    assert np.ptp(np.percentile(grey, [5, 95])) > 40, "the image has structure"
    assert (spread[in_3d] > 40).mean() > 0.05, "meshes are coloured"
    hues = np.unique((picture[in_3d][spread[in_3d] > 40] // 64), axis=0)
    assert len(hues) > 5, "many meshes, many colours"

    # Skeletons alone, without the lines that Neuroglancer itself draws.
    alone = start_viewer({"skeletons": viewer.artifacts["skeletons"]}, layout="3d")
    try:
        browser.open(alone.url)
        assert browser.evaluate(READY) is True
        browser.evaluate("viewer.showAxisLines.value = viewer.showDefaultAnnotations.value = false")
        assert browser.evaluate(READY) is True
        lines = browser.screenshot()[120:-60, 60:-60].astype(int)
        browser.hide("skeletons")
        hidden = browser.screenshot()[120:-60, 60:-60].astype(int)
    finally:
        alone.stop()
    coloured = np.ptp(lines, axis=2) > 40
    assert 0.001 < coloured.mean() < 0.2, "skeletons are lines"
    assert len(np.unique(lines[coloured] // 64, axis=0)) > 5, "of many colours"
    assert (np.ptp(hidden, axis=2) > 40).sum() < coloured.sum() / 10, "and nothing else is there"
    if folder:
        Image.fromarray(lines.astype(np.uint8)).save(Path(folder) / "skeletons.png")


def test_two_results_side_by_side_and_a_published_one(browser: Browser, viewer: Viewer, tmp_path: Path) -> None:
    """Left the segmentation, right the plain image; then the published state, loaded from where it was put."""
    from happyneurons.publish import publish
    from happyneurons.viewer import Panel
    from happyneurons.viewer.sources import FolderSource
    from happyneurons.viewer.volume_server import VolumeServer

    both = start_viewer(
        [Panel("with", viewer.artifacts), Panel("without", {"em": viewer.artifacts["em"]})], layout="xy"
    )
    try:
        browser.open(both.url)
        assert browser.evaluate(READY) is True
        picture = browser.screenshot().astype(int)
    finally:
        both.stop()
    middle = (picture.max(2) - picture.min(2))[HEIGHT // 2 - 100 : HEIGHT // 2 + 100]
    left, right = middle[:, 60 : WIDTH // 2 - 60], middle[:, WIDTH // 2 + 60 : WIDTH - 60]
    assert (left > 40).mean() > 0.15, "segments"
    assert (right > 40).mean() < 0.05, "none"
    grey = picture[HEIGHT // 2 - 100 : HEIGHT // 2 + 100, WIDTH // 2 + 60 : WIDTH - 60].mean(axis=2)
    assert np.ptp(np.percentile(grey, [5, 95])) > 40, "the image"

    place = tmp_path / "place"
    place.mkdir()
    with VolumeServer({"p": FolderSource(place)}) as web:
        done = publish(viewer.artifacts, place.as_uri(), url=web.data_url("p"), viewer=f"{viewer.server.url}/v/viewer")
        browser.open(done.link)
        assert browser.evaluate(READY) is True
        picture = browser.screenshot().astype(int)
    assert ((picture.max(2) - picture.min(2))[100:] > 40).mean() > 0.05
    assert browser.problems == []


def test_results_in_s3_are_served_and_read_back(s3_store: Store) -> None:
    """Compressed chunks, ranges of meshes and skeletons through our server, read by CloudVolume."""
    from urllib.request import Request, urlopen

    from cloudvolume import CloudVolume

    labels = np.zeros((32, 48, 64), np.uint64)
    labels[8:20, 10:30, :] = 6
    uri = s3_store.url("labels")
    create_volume(
        uri, start_zyx=(0, 0, 0), stop_zyx=labels.shape, voxel_size_nm_xyz=(8, 8, 16), dtype="uint64",
        layer_type="segmentation", chunk_zyx=(32, 32, 32),
    ).write((0, 0, 0), labels)  # fmt: skip
    block = {"block_size_xyz": [32, 48, 32]}
    made = {
        "mesh": run_stage(s3_store, "mesh", inputs={"segmentation": uri}, params={**block, "sharded": True}),
        "skeletons": run_stage(s3_store, "skeletonize", inputs={"segmentation": uri}, params={**block, "const_nm": 50}),
    }
    assert made["mesh"].metrics["meshes"] == 1
    artifacts = {"labels": load_artifact(uri)} | {n: load_artifact(m.outputs[n].uri) for n, m in made.items()}
    viewer = start_viewer(artifacts)
    try:
        volume = CloudVolume(f"precomputed://{viewer.server.data_url('labels')}", progress=False)
        np.testing.assert_array_equal(np.asarray(volume[:])[..., 0].T, labels)
        shard = next(name for name in artifacts["mesh"].store().list("") if name.endswith(".shard"))
        whole = artifacts["mesh"].store().get(shard)
        request = Request(f"{viewer.server.data_url('mesh')}/{shard}", headers={"Range": "bytes=16-99"})
        with urlopen(request) as answer:
            assert (answer.status, answer.read()) == (206, whole[16:100])
        with urlopen(f"{viewer.server.data_url('skeletons')}/6") as answer:
            assert answer.read() == artifacts["skeletons"].store().get("6")
    finally:
        viewer.stop()
