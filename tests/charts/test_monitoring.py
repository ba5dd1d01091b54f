"""Boards and alert rules are as their sources have them, and docs/monitoring.md tells of all there is."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.request import urlopen

import pytest
import yaml
from charts.boards.__main__ import BOARDS, stale
from charts.boards.panels import board_json
from charts.boards.queries import resolved
from charts.monitoring import RULES, config, graphs

from happyneurons.orchestrator.server import OrchestratorServer
from happyneurons.orchestrator.sites import SiteConfig
from happyneurons.store.documents import Store
from happyneurons.worker.server import StageServer

DOCS = Path(__file__).resolve().parents[2] / "docs" / "monitoring.md"
TYPE = re.compile(r"^# TYPE (happyneurons_\w+) (counter|gauge|histogram)$", re.MULTILINE)
ROW = re.compile(r"^\| `(happyneurons_\w+)` \| (counter|gauge|histogram) \|", re.MULTILINE)
NAME = re.compile(r"happyneurons_\w+")


def shown(store: Store) -> dict[str, str]:
    """Name → type of every metric of both servers."""
    found: dict[str, str] = {}
    with (
        OrchestratorServer(store, sites={"here": SiteConfig(executor="local")}, metrics_address="127.0.0.1:0") as one,
        StageServer(store, "127.0.0.1:0", metrics_address="127.0.0.1:0") as other,
    ):
        for server in (one, other):
            with urlopen(f"http://{server.metrics_address}/metrics", timeout=30) as answer:
                found |= dict(TYPE.findall(answer.read().decode()))
    return {name: kind for name, kind in found.items() if not name.endswith("_created")}


def used(text: str) -> set[str]:
    """Names of metrics in a query, as `# TYPE` has them."""
    return {re.sub(r"_(bucket|count|sum)$", "", name) for name in NAME.findall(text)} | set(NAME.findall(text))


def rules() -> list[dict[str, object]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def test_the_table_of_metrics_is_what_the_servers_show(store: Store) -> None:
    documented = dict(ROW.findall(DOCS.read_text()))
    assert documented == shown(store)
    for board in BOARDS:
        for panel in board.panels():
            for query in panel.queries:
                assert used(query.expr) & documented.keys() or "ALERTS" in query.expr, query.expr
    for rule in rules():
        expr = str(rule["expr"])
        assert used(expr) & documented.keys() or "happyneurons:" in expr, expr


def test_boards_are_checked_in_as_they_are_written() -> None:
    assert stale() == [], "run `make boards`"


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.name)
def test_a_board_is_whole(board) -> None:
    document = board_json(board)
    panels = document["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells), "no two panels in one place"
    assert max(x for x, _ in cells) < 24
    for panel in board.panels():
        assert panel.text
        assert panel.unit
        assert all("$" not in resolved(query.expr) for query in panel.queries)
    known = {f"/d/{b.uid}/{b.uid}" for b in BOARDS}
    assert {link["url"] for link in document["links"] if link["url"]} <= known


def test_every_alert_says_what_to_do() -> None:
    headings = {line.removeprefix("### ").lower() for line in DOCS.read_text().splitlines() if line.startswith("### ")}
    alerts = [rule for rule in rules() if "alert" in rule]
    for rule in alerts:
        notes = rule["annotations"]
        assert isinstance(notes, dict)
        assert notes["summary"]
        assert notes["description"]
        assert notes["runbook_url"].removeprefix("docs/monitoring.md#") in headings
    tested = "".join(path.read_text() for path in Path(__file__).parent.glob("*.test.yaml"))
    assert [rule["alert"] for rule in alerts if f"alertname: {rule['alert']}\n" not in tested] == []


def test_the_laptop_s_prometheus_has_the_rules_and_the_boards() -> None:
    document = yaml.safe_load(config({"happyneurons": ["localhost:9090"]}))
    assert Path(document["rule_files"][0]).is_file()
    assert document["scrape_configs"][0]["static_configs"] == [{"targets": ["localhost:9090"]}]
    for board in BOARDS:
        assert graphs(board, "http://localhost:9099").startswith("http://localhost:9099/graph?g0.expr=")
