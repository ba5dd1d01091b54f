"""A real Prometheus that scrapes real servers each second."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

from charts.monitoring import command, config, prometheus
from integration_tests.ports import is_free
from tests.worker.waiting import wait_for

SCRAPE = "1s"


class Prometheus:
    """Started by `with`. `rules`: the file of alert rules to evaluate."""

    def __init__(self, folder: Path, targets: Mapping[str, Sequence[str]], rules: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        port = next(p for p in range(30_000, 50_000) if is_free(p))
        self.url, self._targets = f"http://127.0.0.1:{port}", sum(map(len, targets.values()))
        (folder / "prometheus.yml").write_text(config(targets, rules, SCRAPE))
        self._command = command(prometheus(), folder, f"127.0.0.1:{port}")

    def __enter__(self) -> Prometheus:
        with (self.folder / "prometheus.log").open("wb") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        self.began = time.time()
        wait_for(self._up, f"Prometheus; see {self.folder}/prometheus.log", every_s=0.2)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self.folder / "data", ignore_errors=True)

    def _up(self) -> bool:
        assert self._process.poll() is None, (self.folder / "prometheus.log").read_text()
        try:
            return len([v for _, v in self.now("up") if v == 1]) == self._targets
        except (URLError, ConnectionError):
            return False

    def ask(self, path: str, **fields: str | float) -> Any:
        """`data` of an answer of the HTTP interface."""
        with urlopen(f"{self.url}/api/v1/{path}?{urlencode(fields)}", timeout=30) as answer:
            document = json.load(answer)
        assert document["status"] == "success", document
        return document["data"]

    def now(self, expr: str) -> list[tuple[dict[str, str], float]]:
        """(labels, value) of each series of a query, now."""
        return [(r["metric"], float(r["value"][1])) for r in self.ask("query", query=expr)["result"]]

    def since_began(self, expr: str) -> list[tuple[dict[str, str], list[tuple[float, float]]]]:
        """(labels, [(time, value)]) of each series of a query, second by second; what is no number is left out."""
        answer = self.ask("query_range", query=expr, start=self.began, end=time.time(), step=1)
        found = []
        for series in answer["result"]:
            points = [(float(t), float(v)) for t, v in series["values"]]
            found.append((series["metric"], [(t, v) for t, v in points if math.isfinite(v)]))
        return [(labels, points) for labels, points in found if points]

    def firing(self) -> set[str]:
        """Alerts that fire now."""
        return {a["labels"]["alertname"] for a in self.ask("alerts")["alerts"] if a["state"] == "firing"}
