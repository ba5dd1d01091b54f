"""What the montage says of its parameter sets: which were tried on which sections, and what they are worth."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from happyneurons.stages.montage.sets import SetRow, Stopwatch, metrics, set_table, with_times
from tests.stages.test_montage import Acquisition, tissue


def test_rates_are_of_the_sections_tried_and_errors_add_up_to_what_none_could_do() -> None:
    tried = [
        *[{"a": "ok"}] * 6,
        *[{"a": "flagged", "b": "ok"}] * 2,
        {"a": "failed", "b": "flagged", "c": "ok"},
        {"a": "flagged", "b": "failed", "c": "flagged"},
        {},  # without tiles: nothing was tried
    ]
    rows = set_table(["a", "b", "c", "d"], tried)
    assert rows == [
        SetRow("a", 10, 6, 0.4, 0.4),
        SetRow("b", 4, 2, 0.5, 0.2),
        SetRow("c", 2, 1, 0.5, 0.1),
        SetRow("d", 0, 0, None, 0.1),
    ]
    assert metrics(rows) == {
        "error_rate_a": 0.4, "error_rate_b": 0.5, "error_rate_c": 0.5, "accumulated_error": 0.1,
    }  # fmt: skip


def test_no_sections_no_rates() -> None:
    rows = set_table(["a"], [{}, {}])
    assert rows == [SetRow("a", 0, 0, None, None)]
    assert metrics(rows) == {}


def test_times_are_means_over_the_sections_tried() -> None:
    rows = set_table(["a", "b"], [{"a": "ok"}, {"a": "ok"}])
    times = [
        [{"name": "a", "verdict": "ok", "run_s": 1.0, "cpu_s": 3.0}],
        [{"name": "a", "verdict": "", "run_s": 0.5, "cpu_s": 1.0}],  # in the round before
        [{"name": "a", "verdict": "ok", "run_s": 1.5, "cpu_s": 3.0}],
    ]
    timed = with_times(rows, times)
    assert (timed[0].mean_run_s, timed[0].mean_cpu_s) == (1.5, 3.5)
    assert timed[1] == rows[1]


def test_a_stopwatch_counts_this_process() -> None:
    watch = Stopwatch()
    while (tried := watch.tried("a", "ok")).cpu_s < 0.03:
        np.linalg.svd(np.eye(50))
    assert tried.run_s > 0


def test_the_table_of_a_stack_and_its_times_beside_the_manifest(tmp_path: Path) -> None:
    def change(z: int, tile: dict[str, Any], pixels: np.ndarray) -> np.ndarray:
        if (tile["row"], tile["col"]) == (1, 1) and z == 1:  # found by `wide` only
            tile["x_px"] += 75
            tile["y_px"] -= 60
        if (tile["row"], tile["col"]) == (1, 1) and z == 2:  # found by none
            return np.clip(tissue(*pixels.shape, seed=99), 0, 255).astype(np.uint8)
        return pixels

    made = Acquisition(
        tmp_path, rows=2, cols=2, width=220, height=220, overlap=40, sections=4, change=change, status={3: "missing"},
    )  # fmt: skip
    result = made.run(margin_px=120)
    assert result.section(0)["sets_tried"] == {"standard": "ok"}
    assert result.section(1)["sets_tried"] == {"standard": "flagged", "wide": "ok"}
    assert set(result.section(2)["sets_tried"].values()) == {"flagged"}
    assert "sets_tried" not in result.section(3)
    store = result.stack.store()
    rows = store.get_json("sets.json")["sets"]
    assert rows == [
        {"name": "standard", "sections_tried": 3, "sections_ok": 1, "error_rate": pytest.approx(2 / 3, abs=1e-6),
         "accumulated_error": pytest.approx(2 / 3, abs=1e-6)},
        {"name": "wide", "sections_tried": 2, "sections_ok": 1, "error_rate": 0.5,
         "accumulated_error": pytest.approx(1 / 3, abs=1e-6)},
        {"name": "low_contrast", "sections_tried": 1, "sections_ok": 0, "error_rate": 1.0,
         "accumulated_error": pytest.approx(1 / 3, abs=1e-6)},
    ]  # fmt: skip
    table = list(csv.DictReader(io.StringIO(store.get("sets.csv").decode())))
    assert [(r["name"], r["sections_tried"]) for r in table] == [
        ("standard", "3"),
        ("wide", "2"),
        ("low_contrast", "1"),
    ]
    # Times differ from run to run: they are in no file of the stack, but beside the manifest and in its metrics.
    assert set(table[0]) == set(rows[0])
    timed = json.loads(made.store.get(f"jobs/{result.manifest.job_key}/sets.json"))["sets"]
    assert [{k: v for k, v in r.items() if not k.startswith("mean_")} for r in timed] == rows
    assert all(r["mean_run_s"] > 0 and r["mean_cpu_s"] > 0 for r in timed)
    assert result.manifest.metrics["mean_run_s_wide"] == timed[1]["mean_run_s"]
    assert result.manifest.metrics["accumulated_error"] == pytest.approx(1 / 3, abs=1e-6)
    assert made.store.exists(f"jobs/{result.manifest.job_key}/sets.csv")
