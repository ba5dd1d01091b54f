"""The montage by TrakEM2, against a stand-in.

Fiji cannot be installed where the tests run: `trakem2_standin.py` takes the same command line and leaves the
same files. What is tested is how TrakEM2 is called, that its output is checked and judged, and how it becomes
a stack; not TrakEM2, and not that it accepts trakem2_montage.bsh.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from happyneurons.errors import DrainedError, JobFailedError, TaskError, UserError
from happyneurons.stages.montage.trakem2 import EXECUTABLE_VARIABLE, MACRO, run_trakem2
from tests.stages.test_montage import Acquisition, Result, tissue

Tell = Callable[[dict[str, str]], None]
SETS = ["octaves_400_2000", "octaves_400_3000", "octaves_400_3500", "octaves_1000_3500"]


@pytest.fixture
def tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tell:
    """Puts the stand-in where TrakEM2 is looked for; returns what tells it how to behave."""
    program, control = tmp_path / "Fiji.app" / "ImageJ-linux64", tmp_path / "control.json"
    program.parent.mkdir()
    standin = Path(__file__).with_name("trakem2_standin.py")
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{standin}" "$@"\n')
    program.chmod(0o755)
    control.write_text("{}")
    monkeypatch.setenv(EXECUTABLE_VARIABLE, str(program))
    monkeypatch.setenv("STANDIN_CONTROL", str(control))
    return lambda orders: control.write_text(json.dumps(orders)) and None


def acquire(folder: Path, **changes: Any) -> Acquisition:
    settings: dict[str, Any] = {"rows": 2, "cols": 2, "width": 220, "height": 200, "overlap": 40, "turn": 0.0003}
    return Acquisition(folder / "a", **settings | changes)


def run(made: Acquisition, **params: Any) -> Result:
    return made.run(backend="trakem2", **params)


def log(result: Result, z: int, name: str) -> str:
    path = f"jobs/{result.manifest.job_key}/trakem2/{z:06d}_{name}.log"
    return result.acquisition.store.get(path).decode()


def test_tiles_join_and_the_picture_shows_the_tissue_where_the_transforms_say(tmp_path: Path, tell: Tell) -> None:
    made = acquire(tmp_path, sections=2, exposure=False, noise=2, status={1: "missing"})
    result = run(made)
    document = result.section(0)
    assert (document["status"], document["reason"]) == ("ok", "")
    assert document["parameter_set"] == SETS[0]
    assert document["sets_tried"] == {SETS[0]: "ok"}
    assert (document["groups"], document["pairs_joined"], document["pairs_expected"]) == (1, 4, 4)
    assert 0 < document["seam_median_px"] < document["seam_p95_px"] < 1.5
    assert np.percentile(result.seam_errors(0), 95) < 1.5
    assert result.section(1)["status"] == "missing"
    # Its mean place is the nominal one, to half a px.
    middle = np.array([[109.5, 99.5]])
    placed = np.concatenate([result.transforms.map(0, t, middle) for t in result.transforms.tiles(0)])  # type: ignore[misc]
    nominal = np.array([[c * 180, r * 160] for r in range(2) for c in range(2)]) + middle + 32
    assert np.abs(placed.mean(axis=0) - nominal.mean(axis=0)).max() <= 0.51
    picture, scene = result.picture(0), made.scenes[0]
    assert picture.shape == (360 + 64, 400 + 64)
    points = np.random.default_rng(0).uniform(60, 340, (3000, 2)).round()
    back = result.transforms.inverse(0, points)
    assert back is not None
    (rows, cols), xy = back
    assert (rows >= 0).all()
    deep = np.zeros(len(xy), bool)
    expected = np.zeros(len(xy))
    for row in range(2):
        for col in range(2):
            m = made.truth[0, row, col]
            these = (rows == row) & (cols == col)
            # Only where no other tile is: which of two TrakEM2 shows is its own business.
            deep |= these & (np.minimum(xy, [219, 199] - xy).min(axis=1) > 45)
            x, y = (xy[these] @ m[:, :2].T + m[:, 2]).astype(np.float32).T
            expected[these] = cv2.remap(scene, x[None], y[None], cv2.INTER_CUBIC)[0]
    shown = picture[points[deep, 1].astype(int), points[deep, 0].astype(int)]
    assert deep.sum() > 100
    assert np.corrcoef(expected[deep], shown)[0, 1] > 0.98
    assert "stand-in: 4 tiles of section 0, 400 to 2000 px: ok" in log(result, 0, SETS[0])
    assert "-XX:ActiveProcessorCount=1" in log(result, 0, SETS[0])


def test_black_means_no_tile(tmp_path: Path, tell: Tell) -> None:
    def darken(z: int, tile: dict[str, Any], pixels: np.ndarray) -> np.ndarray:
        pixels[60:80, 60:90] = 0
        return pixels

    result = run(acquire(tmp_path, jitter=0.0, turn=0.0, change=darken))
    picture = result.picture(0)
    assert not picture[:30].any()
    assert picture[34 : 32 + 358, 34 : 32 + 398].all()
    assert (picture[100:105, 100:110] == 1).all()


def test_sets_follow_one_another_until_one_gives_an_ok(tmp_path: Path, tell: Tell) -> None:
    tell({"400_2000": "fail", "1:400_3000": "wide", "1:400_3500": "misplaced", "400_3000": "ok"})
    result = run(acquire(tmp_path, sections=2))
    assert result.section(0)["sets_tried"] == {SETS[0]: "failed", SETS[1]: "ok"}
    assert result.section(1)["sets_tried"] == dict(zip(SETS, ("failed", "failed", "flagged", "ok"), strict=True))
    assert [result.section(z)["parameter_set"] for z in (0, 1)] == [SETS[1], SETS[3]]
    assert [result.section(z)["status"] for z in (0, 1)] == ["ok", "ok"]
    assert "OutOfMemoryError" in log(result, 0, SETS[0])
    rows = result.stack.store().get_json("sets.json")["sets"]
    figures = ("name", "sections_tried", "sections_ok", "error_rate", "accumulated_error")
    assert [tuple(row[f] for f in figures) for row in rows] == [
        (SETS[0], 2, 0, 1.0, 1.0), (SETS[1], 2, 1, 0.5, 0.5), (SETS[2], 1, 0, 1.0, 0.5), (SETS[3], 1, 1, 0.0, 0.0),
    ]  # fmt: skip
    metrics = result.manifest.metrics
    assert metrics[f"sections_by_set_{SETS[1]}"] == 1
    assert metrics[f"mean_run_s_{SETS[0]}"] > 0
    # The program's CPU time counts, though it is another process.
    assert metrics[f"mean_cpu_s_{SETS[0]}"] > 0.05


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("fail", "TrakEM2 ended with 1: java.lang.OutOfMemoryError: Java heap space"),
        ("no_picture", "wrote no S_0000.tif"),
        ("damaged", "S_0000.tif is damaged"),
        ("wide", "max_size_deviation"),
        ("no_transforms", "wrote no transforms.tsv"),
        ("turned", "its transform of tile 0_0 cannot be right"),
    ],
)
def test_a_section_fails_if_no_set_leaves_what_it_should(tmp_path: Path, tell: Tell, what: str, reason: str) -> None:
    tell({"0:500_1000": what})
    octaves = [{"min_octave_size_px": 500, "max_octave_size_px": 1000}]
    result = run(acquire(tmp_path, rows=1, sections=2), octave_sets=octaves)
    document = result.section(0)
    assert document["status"] == "failed"
    assert document["reason"].startswith("octaves_500_1000: ")
    assert reason in document["reason"]
    assert document["sets_tried"] == {"octaves_500_1000": "failed"}
    assert "stand-in" in log(result, 0, "octaves_500_1000")
    assert not result.picture(0).any()
    assert result.transforms.tiles(0) == []
    assert result.section(1)["status"] == "ok"
    assert result.manifest.metrics["sections_failed"] == 1


@pytest.mark.parametrize(
    ("what", "reason"),
    [("misplaced", "95th percentile of seam residuals"), ("sloppy", "median seam residual")],
)
def test_seams_that_do_not_fit_are_flagged_and_the_best_set_stays(
    tmp_path: Path, tell: Tell, what: str, reason: str
) -> None:
    tell({"400_2000": "misplaced", "400_3000": what, "400_3500": "fail", "1000_3500": "misplaced"})
    result = run(acquire(tmp_path), max_size_deviation=0.1)
    document = result.section(0)
    assert document["status"] == "flagged"
    assert reason in document["reason"]
    assert document["parameter_set"] == (SETS[1] if what == "sloppy" else SETS[0])
    assert list(document["sets_tried"].values()).count("flagged") == 3
    assert result.picture(0).any()
    assert len(result.transforms.tiles(0)) == 4


def test_a_tile_that_has_nothing_in_common_with_the_others_is_named(tmp_path: Path, tell: Tell) -> None:
    def exchange(z: int, tile: dict[str, Any], pixels: np.ndarray) -> np.ndarray:
        strange = (tile["row"], tile["col"]) == (1, 1)
        return np.clip(tissue(*pixels.shape, seed=99), 0, 255).astype(np.uint8) if strange else pixels

    document = run(acquire(tmp_path, change=exchange)).section(0)
    assert document["status"] == "flagged"
    assert "tiles 1_1 do not fit to the others where TrakEM2 put them" in document["reason"]
    assert document["placed"] == {"0_0": 0, "0_1": 0, "1_0": 0, "1_1": 1}


def test_what_takes_too_long_is_ended_with_all_its_processes(tmp_path: Path, tell: Tell) -> None:
    tell({"400_2000": "hang"})
    log_file, project = tmp_path / "t" / "log", tmp_path / "t" / "project"
    project.mkdir(parents=True)
    started = time.monotonic()
    with pytest.raises(TaskError, match=r"ended after 3 s \(trakem2_timeout_s\)"):
        run_trakem2(_command(tmp_path, project), log_file, timeout_s=3, threads=1, stopping=lambda: False)
    assert time.monotonic() - started < 30
    assert not _alive(int((tmp_path / "child").read_text()))
    assert "hang" in log_file.read_text()


def test_an_attempt_that_ends_does_not_wait_for_trakem2(tmp_path: Path, tell: Tell) -> None:
    tell({"400_2000": "hang"})
    log_file, project = tmp_path / "t" / "log", tmp_path / "t" / "project"
    project.mkdir(parents=True)
    with pytest.raises(DrainedError):
        run_trakem2(
            _command(tmp_path, project), log_file, timeout_s=300, threads=1, stopping=(tmp_path / "child").exists
        )  # fmt: skip
    assert not _alive(int((tmp_path / "child").read_text()))


def test_a_section_that_takes_too_long_fails(tmp_path: Path, tell: Tell) -> None:
    tell({"400_2000": "hang", "400_3000": "ok"})
    result = run(acquire(tmp_path, rows=1), trakem2_timeout_s=4)
    assert result.section(0)["sets_tried"] == {SETS[0]: "failed", SETS[1]: "ok"}


def test_damaged_tiles_are_left_out_and_named(tmp_path: Path, tell: Tell) -> None:
    def remove(z: int, tile: dict[str, Any], pixels: np.ndarray) -> np.ndarray | None:
        return None if z == 1 or (tile["row"], tile["col"]) == (1, 1) else pixels

    result = run(acquire(tmp_path, sections=2, change=remove))
    document = result.section(0)
    assert document["status"] == "flagged"
    assert "1_1.tif cannot be read" in document["reason"]
    assert document["sets_tried"] == {SETS[0]: "ok"}
    assert result.transforms.tiles(0) == [(0, 0), (0, 1), (1, 0)]
    assert result.section(1)["status"] == "failed"


def test_a_picture_that_is_compressed_is_read_too(tmp_path: Path, tell: Tell) -> None:
    tell({"400_2000": "compressed"})
    assert run(acquire(tmp_path, rows=1)).picture(0).any()


def test_one_tile_sixteen_bits(tmp_path: Path, tell: Tell) -> None:
    def deepen(z: int, tile: dict[str, Any], pixels: np.ndarray) -> np.ndarray:
        return pixels.astype(np.uint16) * 200 + 1000

    made = acquire(tmp_path, rows=1, cols=1, overlap=0, change=deepen)
    result = run(made, grey_range=[1000, 1000 + 255 * 200])
    assert result.section(0)["status"] == "ok"
    assert result.section(0)["confidence"] == 1
    assert 100 < np.median(result.picture(0)[40:220, 40:240]) < 200


def test_two_runs_give_the_same_picture_and_transforms(tmp_path: Path, tell: Tell) -> None:
    made = acquire(tmp_path, rows=1)
    results = [run(made), run(made, tile_cache_mb=17)]
    first, second = ({p: r.stack.store().get(p) for p in r.stack.store().list("")} for r in results)
    assert first == second
    assert {"transforms/000000.npz", "sections/000000.json", "sets.csv"} < set(first)


@pytest.mark.parametrize(
    ("value", "message"), [("", "is not set: install Fiji"), ("/no/such/program", "no program that can be run")]
)
def test_without_trakem2_the_job_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str, message: str
) -> None:
    monkeypatch.setenv(EXECUTABLE_VARIABLE, value)
    with pytest.raises((UserError, JobFailedError), match=message):
        run(acquire(tmp_path, rows=1))


def test_a_program_that_cannot_be_started_is_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "ImageJ-linux64"
    program.write_bytes(b"\x7fELF of another machine")
    program.chmod(0o755)
    monkeypatch.setenv(EXECUTABLE_VARIABLE, str(program))
    with pytest.raises((UserError, JobFailedError), match="cannot be started"):
        run(acquire(tmp_path, rows=1))


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ([(2000, 400)], "must not be above"),
        ([(400, 2000), (400, 2000)], "name of its own"),
        ([(1, 2000)], "greater than or equal to 16"),
    ],
)
def test_wrong_octave_sizes_are_refused(tmp_path: Path, sets: list[tuple[int, int]], message: str) -> None:
    octaves = [{"min_octave_size_px": a, "max_octave_size_px": b} for a, b in sets]
    with pytest.raises(UserError, match=message):
        run(acquire(tmp_path, rows=1), octave_sets=octaves)


def test_the_macro_comes_with_the_package() -> None:
    text = MACRO.read_text()
    for option in ("input", "output", "min", "max"):
        assert f'property("{option}")' in text
    assert "S_%04d.tif" in text
    assert "transforms.tsv" in text


def _command(folder: Path, project: Path) -> list[str]:
    listing = folder / "tiles.txt"
    listing.write_text("\t".join(["none.tif", "0", "0", "0", "10", "10", "0", "255", "0"]) + "\n")
    options = [f"-Dinput={listing}", f"-Doutput={project}", "-Dmin=400", "-Dmax=2000"]
    return [os.environ[EXECUTABLE_VARIABLE], "--headless", *options, "--", "--no-splash", str(MACRO)]


def _alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
