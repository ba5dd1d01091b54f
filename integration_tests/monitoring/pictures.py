"""The boards' data as pictures for docs/: the boards' own queries, asked of a real Prometheus at the real servers.

    scripts/board-pictures [--seconds 90] [--folder docs]

Drawn by matplotlib, because no Grafana is run here: places, titles, units, limits and colours are the boards'.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from charts.boards.__main__ import BOARDS
from charts.boards.panels import Board, Panel, Query, board_json
from charts.boards.queries import resolved
from charts.monitoring import RULES
from integration_tests.monitoring.prometheus_server import Prometheus
from integration_tests.monitoring.stack import FAULTS, Stack, load, section, serving
from matplotlib.axes import Axes
from PIL import Image

from happyneurons.client import Client

GRID = {"rate_interval": "10s", "shown": "5m"}
UNIT_PX = 50
COLOURS = plt.get_cmap("tab10").colors
PACE_S = 4.0


def keep_busy(stack: Stack, client: Client, microscope: Any, seconds: float) -> None:
    """Runs, sections and requests for a while; then what was held back goes on."""
    end, number = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        number += 1
        client.submit(stack.text(FAULTS).replace("tasks: 5", f"tasks: {20 + number}"))
        microscope.report_sections([section(10 + 2 * number), section(11 + 2 * number)])
        list(client.runs(limit=5))
        time.sleep(PACE_S)
    (stack.control / "release").touch()
    time.sleep(2 * PACE_S)


def text_of(value: float, unit: str) -> str:
    """A value with its unit, short."""
    if unit == "percentunit":
        return f"{100 * value:.3g} %"
    if unit == "s":
        return f"{1000 * value:.3g} ms" if abs(value) < 1 and value else f"{value:.3g} s"
    scale = {"bytes": ("B", 1000), "Bps": ("B/s", 1000), "ops": ("/s", 1000), "short": ("", 1000)}.get(unit, ("", 1000))
    for prefix in ("", "k", "M", "G"):
        if abs(value) < scale[1]:
            return f"{value:.3g} {prefix}{scale[0]}".strip()
        value /= scale[1]
    return f"{value:.3g} T{scale[0]}"


def legend_of(query: Query, labels: dict[str, str]) -> str:
    text = query.legend
    for name, value in labels.items():
        text = text.replace(f"{{{{{name}}}}}", value)
    return text


def colour_of(panel: Panel, value: float) -> str:
    """By the panel's limits."""
    found = "tab:green"
    for limit, colour in panel.limits:
        if value >= limit:
            found = {"orange": "tab:orange", "red": "tab:red"}.get(colour, colour)
    return found


def draw(axes: Axes, panel: Panel, prometheus: Prometheus) -> None:
    axes.set_title(panel.title, fontsize=8, loc="left")
    answers = [
        (legend_of(query, labels) or panel.title, points)
        for query in panel.queries
        for labels, points in prometheus.since_began(resolved(query.expr, **GRID))
    ]
    if panel.kind == "table":
        answers = [
            (f"{' '.join(labels.values())}: {query.legend}", points)
            for query in panel.queries
            for labels, points in prometheus.since_began(resolved(query.expr, **GRID))
        ]
    answers.sort(key=lambda answer: -answer[1][-1][1])
    if panel.kind == "timeseries":
        _lines(axes, panel, answers, prometheus.began)
        return
    axes.set_axis_off()
    if panel.kind == "stat":
        shown = [f"{name if len(answers) > 1 else ''} {_mapped(panel, points[-1][1])}" for name, points in answers]
        size = 16 if len(shown) == 1 else 10
        colour = colour_of(panel, answers[0][1][-1][1]) if answers else "grey"
        axes.text(0.5, 0.45, "\n".join(shown).strip(), ha="center", va="center", fontsize=size, color=colour)
        return
    for i, (name, points) in enumerate(answers[:8]):
        value, y = points[-1][1], 1 - (i + 0.7) / 8
        if panel.kind == "bargauge":
            most = max(abs(p[-1][1]) for _, p in answers) or 1.0
            axes.barh(y, 0.33 * abs(value) / most, left=0.5, height=0.07, color=colour_of(panel, value))
        axes.text(0.0, y, name[:34], fontsize=7, va="center")
        axes.text(0.85 if panel.kind == "bargauge" else 0.7, y, text_of(value, panel.unit), fontsize=7, va="center")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)


def _mapped(panel: Panel, value: float) -> str:
    known = {float(v): text for v, text, _ in panel.mappings}
    return known.get(value, text_of(value, panel.unit))


def _lines(axes: Axes, panel: Panel, answers: list[tuple[str, list[tuple[float, float]]]], began: float) -> None:
    if panel.stacked and answers:
        times = sorted({t for _, points in answers for t, _ in points})
        rows = [[dict(points).get(t, 0.0) for t in times] for _, points in answers]
        axes.stackplot([t - began for t in times], rows, labels=[n for n, _ in answers], alpha=0.7, colors=COLOURS)
    else:
        for i, (name, points) in enumerate(answers[:10]):
            axes.plot([t - began for t, _ in points], [v for _, v in points], lw=1, label=name, color=COLOURS[i % 10])
        if panel.minimum is not None:
            axes.set_ylim(bottom=panel.minimum)
    axes.yaxis.set_major_formatter(lambda value, _: text_of(value, panel.unit))
    axes.tick_params(labelsize=6)
    axes.spines[["top", "right"]].set_visible(False)
    if answers:
        axes.legend(fontsize=6, frameon=False, loc="upper left", ncols=2)


def picture(board: Board, prometheus: Prometheus, file: Path) -> None:
    """One board as one PNG."""
    document = board_json(board)["panels"]
    places = [panel["gridPos"] for panel in document if panel["type"] != "row"]
    height = max(place["y"] + place["h"] for place in places)
    figure = plt.figure(figsize=(24 * UNIT_PX / 100, height * UNIT_PX * 0.55 / 100), dpi=100)
    for panel, place in zip(board.panels(), places, strict=True):
        left, width = (place["x"] + 0.9) / 24, (place["w"] - 1.2) / 24
        bottom, tall = 1 - (place["y"] + place["h"] - 0.9) / height, (place["h"] - 2.2) / height
        draw(figure.add_axes((left, bottom, width, tall)), panel, prometheus)
    for panel in document:
        if panel["type"] == "row":
            figure.text(0.01, 1 - (panel["gridPos"]["y"] + 0.7) / height, panel["title"], fontsize=10, weight="bold")
    buffer = io.BytesIO()
    figure.savefig(buffer)
    plt.close(figure)
    Image.open(buffer).convert("RGB").quantize(48).save(file, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=90, help="how long the load goes on [90]")
    parser.add_argument("--folder", type=Path, default=Path("docs"), help="where the pictures go [docs]")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary, serving(Path(temporary) / "stack") as stack:
        targets = {"happyneurons": list(stack.metrics.values())}
        with Prometheus(Path(temporary) / "prometheus", targets, RULES) as prometheus:
            with Client(stack.addresses["orchestrator"]) as client:
                _, _, microscope = load(stack, client)
                keep_busy(stack, client, microscope, given.seconds)
            for board in BOARDS:
                picture(board, prometheus, given.folder / f"monitoring-{board.name}.png")


if __name__ == "__main__":
    main()
