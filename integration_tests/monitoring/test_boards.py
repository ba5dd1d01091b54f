"""Every query of every board has an answer, and alerts fire, with a real Prometheus at the real servers under load."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest
from charts.boards.__main__ import BOARDS
from charts.boards.queries import resolved
from charts.monitoring import RULES
from integration_tests.monitoring.prometheus_server import Prometheus
from integration_tests.monitoring.stack import Stack, load, serving
from tests.worker.waiting import wait_for

from happyneurons.client import Client

pytestmark = pytest.mark.skipif(shutil.which("promtool") is None, reason="no Prometheus (Debian: prometheus)")
LOOKED_AT = {"rate_interval": "10s", "shown": "5m"}


def hurried(rules: Path, folder: Path) -> Path:
    """The rules with seconds for minutes: an alert that waits five minutes for a fault to last fires at once."""
    text = rules.read_text()
    text = re.sub(r"^( +for:) \w+", r"\1 1s", text, flags=re.MULTILINE)
    text = re.sub(r"\[(5|10|15|30)m\]", "[8s]", text).replace("interval: 5m", "interval: 1s")
    found = folder / "rules.yaml"
    found.write_text(text)
    return found


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with serving(tmp_path_factory.mktemp("stack")) as found:
        yield found


@pytest.fixture(scope="module")
def prometheus(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """After it has seen the load."""
    folder = tmp_path_factory.mktemp("prometheus")
    targets = {"happyneurons": list(stack.metrics.values())}
    with Prometheus(folder, targets, hurried(RULES, folder)) as found:
        with Client(stack.addresses["orchestrator"]) as client:
            load(stack, client)
        # Rates need two scrapes after the last thing that happened.
        scraped = "min(count_over_time(happyneurons_build_info[5m]))"
        before = found.now(scraped)[0][1]
        wait_for(lambda: found.now(scraped)[0][1] >= before + 3, "three more scrapes", every_s=0.3)
        yield found


QUERIES = [
    pytest.param(query.expr, id=f"{board.name}-{panel.title}-{i}".replace(" ", "_"))
    for board in BOARDS
    for panel in board.panels()
    for i, query in enumerate(panel.queries)
]


@pytest.mark.parametrize("expr", QUERIES)
def test_a_panel_has_something_to_show(prometheus: Prometheus, expr: str) -> None:
    assert prometheus.since_began(resolved(expr, **LOOKED_AT))


def test_figures_are_those_of_the_load(prometheus: Prometheus) -> None:
    """What the queries of boards are made of, where the load says what they must be."""

    def value(expr: str) -> float:
        return sum(v for _, v in prometheus.now(expr))

    assert value('happyneurons_jobs_failed_total{kind="task"}') == 1
    assert value('happyneurons_jobs_failed_total{kind="user"}') == 1
    assert value('happyneurons_retries_total{kind="superseded"}') == 1
    assert value('happyneurons_task_failures_total{stage="sandbox",kind="task"}') == 2
    assert value('happyneurons_tasks_total{outcome="quarantined"}') == 1
    waiting = {(m["reason"], m["site"]): v for m, v in prometheus.now("happyneurons_jobs_waiting")}
    assert waiting["decision", "local"] == 1
    assert waiting["upstream", "local"] == 1
    assert waiting["sections", "local"] == 1
    assert waiting["site_queue", "hpc"] == 1
    assert value('happyneurons_montage_sections_total{verdict="ok"}') == 8
    assert value("happyneurons_evaluation_adapted_rand_error_ratio") == 0
    assert value('happyneurons_model_accuracy_ratio{score="f1"}') == pytest.approx(0.93)
    assert value('happyneurons_acquisition_sections{state="gap"}') == 2
    assert value('happyneurons_grpc_calls_total{code="NOT_FOUND",method="GetRun"}') == 1
    assert value('happyneurons_rank_memory_peak_bytes{stage="sandbox"}') > 10e6
    assert value('happyneurons_rank_store_call_seconds_count{stage="montage",operation="volume_write"}') > 0
    # 8 sections of 192 × 128 voxels, less what the simulated tiles leave at the borders.
    tissue = value('happyneurons_produced_cubic_meters_total{stage="montage"}')
    assert 0 < tissue < 1e-15
    cost, core_seconds = (value(f'happyneurons_{n}_total{{site="local"}}') for n in ("cost", "core_seconds"))
    assert cost == pytest.approx(core_seconds / 3600 * 0.05, rel=0.2)


def test_conventions(stack: Stack, prometheus: Prometheus) -> None:
    """`promtool check metrics` finds nothing, and labels are words, not names of runs and jobs."""
    runs = [path.name for path in (stack.store / "runs").iterdir()]
    keys = [path.name for path in (stack.store / "jobs").iterdir()]
    for address in stack.metrics.values():
        with urlopen(f"http://{address}/metrics", timeout=30) as answer:
            page = answer.read()
        checked = subprocess.run(["promtool", "check", "metrics"], input=page, capture_output=True, check=False)
        assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")
        assert not [name for name in runs + keys if name.encode() in page]
        assert len(page.splitlines()) < 3000


def test_alerts_fire_when_the_fault_is_real(stack: Stack, prometheus: Prometheus) -> None:
    """Last: it ruins the stack. Nothing fires that is not told here of a store that was taken away, and a kill."""
    assert prometheus.firing() <= {"HappyNeuronsJobsFail", "HappyNeuronsTasksFail"}, "of the load's own faults"
    away = stack.store.with_name("away")
    stack.store.rename(away)
    stack.store.write_text("no folder")
    wait_for(lambda: "HappyNeuronsStoreFailing" in prometheus.firing(), "the store's alert", every_s=0.3)
    # A leader that cannot write its heartbeat stops leading: that is told, too.
    told = {"HappyNeuronsSchedulerFailing", "HappyNeuronsLeaderLost"}
    wait_for(lambda: told & prometheus.firing(), "the scheduler's alert, or the leader's", every_s=0.3)
    stack.store.unlink()
    away.rename(stack.store)
    wait_for(lambda: not told & prometheus.firing(), "the end of it", every_s=0.3)
    stack.kill("orchestrator")
    wait_for(lambda: "HappyNeuronsLeaderLost" in prometheus.firing(), "the leader's alert", every_s=0.3)
