"""Panels, rows and boards, and what Grafana wants to read of them.

A board is a title, variables and rows of panels; a panel is a title, a sentence, a unit and queries. Everything else
(places, ids, the data source, links) is filled in here, alike for all boards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["timeseries", "stat", "bargauge", "table"]
Json = dict[str, Any]

SCHEMA_VERSION = 39  # of Grafana 10.4 and later, which move older ones up
WIDTH = 24
HEIGHT = {"timeseries": 8, "stat": 4, "bargauge": 8, "table": 8}
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
TAG = "happyneurons"

GREEN, ORANGE, RED, BLUE = "green", "orange", "red", "blue"


@dataclass(frozen=True)
class Query:
    """expr: PromQL with Grafana's variables. legend: with {{label}}s."""

    expr: str
    legend: str = ""


@dataclass(frozen=True)
class Panel:
    """unit: Grafana's name of it. limits: (value, colour) from which on a value is bad. width: of 24."""

    title: str
    text: str
    unit: str
    queries: Sequence[Query]
    kind: Kind = "timeseries"
    limits: Sequence[tuple[float, str]] = ()
    stacked: bool = False
    width: int = 12
    decimals: int | None = None
    minimum: float | None = 0.0
    maximum: float | None = None
    mappings: Sequence[tuple[str, str, str]] = ()
    """(value, text, colour) of values that mean something."""


@dataclass(frozen=True)
class Row:
    title: str
    panels: Sequence[Panel]


@dataclass(frozen=True)
class Variable:
    """Values of a label among those of a metric; several or all may be chosen."""

    name: str
    metric: str


@dataclass(frozen=True)
class Board:
    name: str
    title: str
    text: str
    rows: Sequence[Row]
    variables: Sequence[Variable] = ()
    links: Sequence[tuple[str, str]] = field(default=())
    """(board, what one looks for there)"""

    @property
    def uid(self) -> str:
        return f"{TAG}-{self.name}"

    def panels(self) -> list[Panel]:
        return [panel for row in self.rows for panel in row.panels]


def board_json(board: Board) -> Json:
    """A board as Grafana imports it."""
    panels: list[Json] = []
    y = 0
    for row in board.rows:
        panels.append(
            {
                "id": len(panels) + 1, "type": "row", "title": row.title, "collapsed": False, "panels": [],
                "gridPos": {"x": 0, "y": y, "w": WIDTH, "h": 1},
            }
        )  # fmt: skip
        x, y, tallest = 0, y + 1, 0
        for panel in row.panels:
            height = HEIGHT[panel.kind]
            if x + panel.width > WIDTH:
                x, y, tallest = 0, y + tallest, 0
            place = {"x": x, "y": y, "w": panel.width, "h": height}
            panels.append(_panel(panel, len(panels) + 1, place))
            x, tallest = x + panel.width, max(tallest, height)
        y += tallest
    return {
        "uid": board.uid,
        "title": f"HAPPYNeurons / {board.title}",
        "description": board.text,
        "tags": [TAG],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "timezone": "browser",
        "fiscalYearStartMonth": 0,
        "templating": {"list": [_datasource(), *(_variable(v) for v in board.variables)]},
        "annotations": {"list": []},
        "links": [_all_boards(), *(_link(name, text) for name, text in board.links)],
        "panels": panels,
    }


def _panel(panel: Panel, number: int, place: Json) -> Json:
    defaults: Json = {
        "unit": panel.unit,
        "color": {"mode": "thresholds" if panel.kind != "timeseries" else "palette-classic"},
        "thresholds": {
            "mode": "absolute",
            "steps": [{"value": None, "color": GREEN}, *({"value": v, "color": c} for v, c in panel.limits)],
        },
        "mappings": [
            {"type": "value", "options": {value: {"text": text, "color": colour, "index": i}}}
            for i, (value, text, colour) in enumerate(panel.mappings)
        ],
    }
    for name, value in (("decimals", panel.decimals), ("min", panel.minimum), ("max", panel.maximum)):
        if value is not None:
            defaults[name] = value
    if panel.kind == "timeseries":
        defaults["custom"] = {
            "drawStyle": "line",
            "lineWidth": 1,
            "fillOpacity": 30 if panel.stacked else 5,
            "showPoints": "never",
            "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
            "thresholdsStyle": {"mode": "dashed" if panel.limits else "off"},
        }
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.text,
        "datasource": DATASOURCE,
        "gridPos": place,
        "targets": [_target(query, chr(ord("A") + i), panel.kind) for i, query in enumerate(panel.queries)],
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": _options(panel),
        "transformations": _transformations(panel),
    }


def _target(query: Query, name: str, kind: Kind) -> Json:
    instant = kind in ("table", "bargauge")
    return {
        "refId": name,
        "datasource": DATASOURCE,
        "expr": query.expr,
        "legendFormat": query.legend or "__auto",
        "instant": instant,
        "range": not instant,
        "format": "table" if kind == "table" else "time_series",
        "editorMode": "code",
    }


def _options(panel: Panel) -> Json:
    reduce = {"calcs": ["lastNotNull"], "fields": "", "values": False}
    if panel.kind == "timeseries":
        return {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
    if panel.kind == "stat":
        return {
            "reduceOptions": reduce, "colorMode": "value", "graphMode": "area", "justifyMode": "auto",
            "orientation": "auto", "textMode": "auto", "wideLayout": True, "showPercentChange": False,
            "percentChangeColorMode": "standard",
        }  # fmt: skip
    if panel.kind == "bargauge":
        return {
            "reduceOptions": reduce, "displayMode": "gradient", "orientation": "horizontal", "valueMode": "color",
            "namePlacement": "auto", "showUnfilled": True, "sizing": "auto", "minVizWidth": 8, "minVizHeight": 16,
            "maxVizHeight": 300,
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": False, "calcs": []},
        }  # fmt: skip
    return {"showHeader": True, "cellHeight": "sm", "frameIndex": 0}


def _transformations(panel: Panel) -> list[Json]:
    """A table has a column for each query, and a row for each set of labels."""
    if panel.kind != "table":
        return []
    names = {f"Value #{chr(ord('A') + i)}": query.legend for i, query in enumerate(panel.queries)}
    if len(panel.queries) == 1:
        names = {"Value": panel.queries[0].legend}
    return [
        {"id": "merge", "options": {}},
        {"id": "organize", "options": {"excludeByName": {"Time": True}, "renameByName": names}},
    ]


def _datasource() -> Json:
    return {
        "name": "datasource", "type": "datasource", "label": "Prometheus", "query": "prometheus", "hide": 0,
        "includeAll": False, "multi": False, "options": [], "regex": "", "refresh": 1, "skipUrlSync": False,
    }  # fmt: skip


def _variable(variable: Variable) -> Json:
    query = f"label_values({variable.metric}, {variable.name})"
    return {
        "name": variable.name, "type": "query", "label": variable.name.capitalize(), "datasource": DATASOURCE,
        "query": {"query": query, "refId": variable.name}, "refresh": 2, "sort": 1, "hide": 0,
        "includeAll": True, "multi": True, "allValue": ".*", "current": {"text": ["All"], "value": ["$__all"]},
        "options": [], "regex": "", "skipUrlSync": False,
    }  # fmt: skip


def _all_boards() -> Json:
    return {
        "title": "HAPPYNeurons", "type": "dashboards", "tags": [TAG], "asDropdown": True, "includeVars": True,
        "keepTime": True, "targetBlank": False, "icon": "external link", "tooltip": "The other boards", "url": "",
    }  # fmt: skip


def _link(name: str, text: str) -> Json:
    return {
        "title": name.capitalize(), "type": "link", "tags": [], "asDropdown": False, "includeVars": True,
        "keepTime": True, "targetBlank": False, "icon": "dashboard", "tooltip": text,
        "url": f"/d/{TAG}-{name}/{TAG}-{name}",
    }  # fmt: skip
