"""align with AlignTK's programs: with stand-ins everywhere, and with the real ones where HPN_ALIGNTK_BIN is set.

The stand-ins (aligntk_standin.py) keep to the programs' files, options and exit codes, and only shift
sections: they show that the adapter does its part, not how well AlignTK aligns. That is measured by
the last test, with a real AlignTK.
"""

from __future__ import annotations

import os
import threading
import time
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest

from happyneurons.errors import DrainedError, JobFailedError, TaskError, UserError
from happyneurons.imaging.aligntk_maps import read_map
from happyneurons.imaging.transforms import AlignTransforms
from happyneurons.jobs.spec import make_spec
from happyneurons.stages import load_stage
from happyneurons.stages.align.aligntk import BIN, LAUNCHER, Programs, node_level
from happyneurons.stages.align.aligntk_rounds import fixed_sections
from happyneurons.stages.align.params import AlignTKParams
from happyneurons.store.artifacts import Artifact
from happyneurons.store.documents import Store, local_path
from happyneurons.store.volumes import open_volume
from tests.stages.aligntk_standin import install
from tests.stages.test_align import CORNER_XY, Z0, Warps, align, distorted, errors, publish, status, tissue

__all__ = ["distorted", "tissue"]  # fixtures

REAL = os.environ.get(BIN)
SECTIONS, SIZE = 5, 160


@pytest.fixture
def stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = install(tmp_path / "bin")
    monkeypatch.setenv(BIN, str(folder))
    monkeypatch.delenv(LAUNCHER, raising=False)
    return folder


@pytest.fixture(scope="module")
def shifted() -> tuple[np.ndarray, np.ndarray]:
    """Sections of slowly changing blobs, shifted by whole px; and the shifts: tissue p is at p + shift in a section."""
    rng = np.random.default_rng(5)
    shifts = rng.integers(-9, 10, (SECTIONS, 2))
    shifts[2] = 0
    around = SIZE + 40
    common, pictures = rng.standard_normal((around, around)), []
    for dx, dy in shifts:
        blobs = cv2.GaussianBlur(common + 0.4 * rng.standard_normal(common.shape), (0, 0), 2.5)
        grey = np.clip(128 + 40 * blobs / blobs.std(), 1, 255).astype(np.uint8)
        pictures.append(grey[20 - dy : 20 - dy + SIZE, 20 - dx : 20 - dx + SIZE])
    return np.stack(pictures), shifts


def moved(stack: Artifact, i: int) -> np.ndarray | None:
    """Where the middle of section i goes, from where it was."""
    middle = np.array([CORNER_XY]) + SIZE / 2
    found = AlignTransforms(stack).map(Z0 + i, middle)
    return None if found is None else (found - middle)[0]


def test_shifts_are_undone(store: Store, shifted: tuple[np.ndarray, np.ndarray], stand_ins: Path) -> None:
    pictures, shifts = shifted
    manifest, aligned = align(store, publish(store, pictures), backend="aligntk", anchor=Z0 + 2)
    for i in range(SECTIONS):
        found = moved(aligned, i)
        assert found is not None
        assert np.abs(found + shifts[i]).max() < 0.5
    assert manifest.metrics["sections_ok"] == SECTIONS
    assert manifest.metrics["pairs_ok"] == SECTIONS - 1
    assert manifest.metrics["residual_median_px"] < 0.3
    # It is drawn as the native backend draws: neighbours show the same.
    image = open_volume(f"{aligned.data_uri}/image")
    drawn = image.read(image.start_zyx, image.stop_zyx)[:, 20:-20, 20:-20].astype(float)
    for a, b in pairwise(drawn):
        assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.6
    # The programs' own files are kept in the stack, their words beside the manifest.
    kept = local_path(aligned.data_uri)
    assert kept is not None
    names = {str(path.relative_to(kept / "aligntk")) for path in (kept / "aligntk").rglob("*.*")}
    pair = f"{Z0:06d}_{Z0 + 1:06d}"
    assert {f"{sort}/{pair}.{kind}" for sort in ("cmaps", "maps") for kind in ("map", "score")} <= names
    logs = f"jobs/{manifest.job_key}/aligntk"
    assert {f"{logs}/{name}.log" for name in (f"{pair}.find_rst", f"{pair}.register", "align")} <= set(store.list(logs))
    assert b"stand-in for AlignTK's align" in store.get(f"{logs}/align.log")
    # Such a map is a section's warp, but for the volume's offset.
    own, warp = read_map(kept / f"aligntk/amaps/{Z0 + 1:06d}.map"), AlignTransforms(aligned).warp(Z0 + 1)
    assert warp is not None
    np.testing.assert_allclose(warp.nodes, own.nodes + CORNER_XY, atol=1e-3)


def test_pictures_are_averaged_down_and_warps_are_not(
    store: Store, shifted: tuple[np.ndarray, np.ndarray], stand_ins: Path
) -> None:
    pictures, shifts = shifted
    large = np.stack([cv2.resize(p, (2 * SIZE, 2 * SIZE), interpolation=cv2.INTER_NEAREST) for p in pictures[1:3]])
    _, aligned = align(store, publish(store, large), backend="aligntk", anchor=Z0 + 1, working_size_px=SIZE)
    found = moved(aligned, 0)
    assert found is not None
    assert np.abs(found + 2 * shifts[1]).max() < 1


def test_bad_sections_are_bridged(store: Store, shifted: tuple[np.ndarray, np.ndarray], stand_ins: Path) -> None:
    pictures, shifts = shifted[0].copy(), shifted[1]
    pictures[1] = np.rot90(pictures[1], 2)  # foreign
    stack = publish(store, pictures, {3: "missing"})
    manifest, aligned = align(store, stack, backend="aligntk", anchor=Z0 + 2)
    assert [status(aligned, i) for i in (1, 3)] == ["failed", "missing"]
    assert moved(aligned, 1) is None
    for i in (0, 2, 4):
        found = moved(aligned, i)
        assert found is not None
        assert np.abs(found + shifts[i]).max() < 0.5
    assert manifest.metrics["pairs_failed"] == 3


def test_a_single_section_stays(store: Store, shifted: tuple[np.ndarray, np.ndarray], stand_ins: Path) -> None:
    _, aligned = align(store, publish(store, shifted[0][:1]), backend="aligntk")
    assert np.abs(moved(aligned, 0)).max() < 1e-6  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("fail:register", "AlignTK's register failed with exit code 3: Could not read image"),
        ("silent:find_rst", "AlignTK's find_rst ended well but wrote no 000005_000006.score"),
        ("truncate:register", "AlignTK's register: 000005_000006.map: truncated AlignTK map"),
        ("silent:align", "AlignTK's align wrote no map of 2 sections"),
        ("truncate:align", "AlignTK's align: 000005.map: truncated AlignTK map"),
    ],
)
def test_what_goes_wrong_is_noticed(
    store: Store, shifted: tuple[np.ndarray, np.ndarray], stand_ins: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture, how: str, message: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("STANDIN_ALIGNTK", how)
    with caplog.at_level("WARNING"), pytest.raises(JobFailedError, match="quarantined"):
        align(store, publish(store, shifted[0][:2]), backend="aligntk")
    assert message in caplog.text
    # What the program said is kept for whoever looks into it.
    program = how.partition(":")[2]
    assert [path for path in store.list("jobs") if path.endswith(f"{program}.log")]


def test_a_program_is_ended_in_time(tmp_path: Path, stand_ins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STANDIN_ALIGNTK", "hang:align")
    programs, start = Programs.find(), time.monotonic()
    with pytest.raises(TaskError, match="align was ended after 0.0167 min"):
        programs.run("align", [], tmp_path, tmp_path / "log", limit_s=1)
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    with pytest.raises(DrainedError):
        programs.run("align", [], tmp_path, tmp_path / "log", limit_s=100, stopping=stop.is_set)
    assert time.monotonic() - start < 20


def test_programs_do_not_take_themselves_for_our_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stand_ins: Path
) -> None:
    (stand_ins / "align").write_text('#!/bin/sh\nenv; echo "args $@"\n')
    for name in ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK", "MPI_LOCALRANKID"):
        monkeypatch.setenv(name, "3")
    monkeypatch.setenv(LAUNCHER, "env STARTED=yes")
    Programs.find().run("align", ["-x"], tmp_path, tmp_path / "log", limit_s=60)
    said = (tmp_path / "log").read_text()
    assert "STARTED=yes" in said
    assert "args -x" in said
    assert "=3\n" not in said


def test_a_missing_installation_is_refused(
    store: Store, shifted: tuple[np.ndarray, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = publish(store, shifted[0][:2])
    monkeypatch.delenv(BIN, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=f"AlignTK is not installed: .*build AlignTK 1.0.2 and set {BIN}"):
        align(store, stack, backend="aligntk")
    folder = install(tmp_path / "half")
    (folder / "register").unlink()
    monkeypatch.setenv(BIN, str(folder))
    with pytest.raises(UserError, match=f"{BIN}: {folder} has no program register"):
        align(store, stack, backend="aligntk")
    # On PATH they are found, too.
    whole = install(tmp_path / "whole")
    assert Programs.find({"PATH": str(whole)}).folder == whole
    with pytest.raises(UserError, match="no program nompi"):
        Programs.find({BIN: str(whole), LAUNCHER: "nompi -n 2", "PATH": str(whole)})


def test_parameters(store: Store, shifted: tuple[np.ndarray, np.ndarray]) -> None:
    stack = publish(store, shifted[0][:2])
    stage = load_stage("align")

    def key(**params: object) -> str:
        return make_spec(stage, inputs={"stack": stack}, params=params).key

    # Settings that are not given leave the key as it was before there were any.
    assert "aligntk" not in make_spec(stage, inputs={"stack": stack}, params={}).params
    assert key() != key(backend="aligntk") != key(backend="aligntk", aligntk={"quality": 1.0})
    for steps in ([[0, 1, 1], [1, 1, 1]], [[2, 1, 1]], []):
        with pytest.raises(UserError, match="params.aligntk.schedule"):
            key(backend="aligntk", aligntk={"schedule": steps})
    assert node_level(AlignTKParams(), 1280, 1024) == 6
    assert node_level(AlignTKParams(), 200, 160) == 4
    assert node_level(AlignTKParams(level=7), 200, 160) == 7
    assert fixed_sections([1, 2, 3, 7, 8], [(1, 2), (2, 3), (7, 8)], None) == [2, 8]
    assert fixed_sections([1, 2, 3, 7, 8], [(1, 2), (2, 3), (7, 8)], 3) == [3, 8]


@pytest.mark.skipif(REAL is None, reason=f"needs a real AlignTK: build it and set {BIN} to its folder")
def test_a_real_aligntk(store: Store, distorted: tuple[np.ndarray, Warps]) -> None:
    """Shifts, rotations, bending and noise, undone by AlignTK itself; a foreign section is bridged. 1 minute."""
    pictures, truth = distorted[0][:5].copy(), distorted[1][:5]
    pictures[2] = np.rot90(pictures[4])[::-1]
    manifest, aligned = align(store, publish(store, pictures), backend="aligntk")
    assert status(aligned, 2) == "failed"
    # Two neighbours, and three pairs past the foreign section.
    assert manifest.metrics["pairs_ok"] == 5
    adjacent, _, scale = errors(aligned, truth)
    assert np.median(adjacent) < 1.0
    assert scale == pytest.approx(1, abs=0.01)
    folder = local_path(aligned.data_uri)
    assert folder is not None
    assert read_map(folder / f"aligntk/amaps/{Z0:06d}.map").spacing_px == 16
