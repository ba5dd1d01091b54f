"""Figures as pictures: tables, reports and training curves (Pillow)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROWS, COLUMNS, CELL = 50, 12, 36  # of a table that are shown, and characters of a cell
PAPER_RGB, INK, DIM, LINE = (250, 250, 252), (40, 40, 46), (110, 110, 120), (222, 222, 228)
SERIES = ((60, 60, 60), (40, 140, 40), (40, 110, 200), (200, 60, 50), (150, 90, 190), (200, 130, 30), (20, 150, 150))
LOSS = "loss"
"""Has a scale of its own, on the left; the others share one."""


def table_picture(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> NDArray[np.uint8]:
    """(h, w, 3) picture of a table's first rows and columns."""
    from PIL import Image, ImageDraw, ImageFont

    more_columns = len(columns) - COLUMNS
    shown = [[_cell(c) for c in columns[:COLUMNS]]]
    shown += [[_cell(v) for v in row[:COLUMNS]] for row in rows[:ROWS]]
    shown = [row + [""] * (len(shown[0]) - len(row)) for row in shown]
    font, high = ImageFont.load_default(13), 22
    widths = [max(int(font.getlength(row[i])) for row in shown) + 22 for i in range(len(shown[0]))]
    notes = [f"… {len(rows) - ROWS} more rows"] * (len(rows) > ROWS)
    notes += [f"… {more_columns} more columns: {', '.join(columns[COLUMNS:])}"[:120]] * (more_columns > 0)
    width = max([sum(widths), *(int(font.getlength(n)) + 22 for n in notes), 120])
    picture = Image.new("RGB", (width, high * (len(shown) + len(notes)) + 8), PAPER_RGB)
    draw = ImageDraw.Draw(picture)
    for number, row in enumerate(shown):
        x, y = 10, number * high + 6
        for text, wide in zip(row, widths, strict=True):
            right = number > 0 and _is_number(text)
            at = x + wide - 22 - int(font.getlength(text)) if right else x
            draw.text((at, y), text, fill=INK if number else DIM, font=font)
            x += wide
        draw.line((8, y + high - 4, width - 8, y + high - 4), fill=LINE)
    for number, note in enumerate(notes):
        draw.text((10, (len(shown) + number) * high + 6), note, fill=DIM, font=font)
    return np.asarray(picture)


def figures(document: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """(name, value) of the numbers in a report, names joined with dots; lists of single objects are left out."""
    for name, value in document.items():
        if isinstance(value, Mapping):
            yield from figures(value, f"{prefix}{name}.")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"{prefix}{name}", float(value)


def curves(rows: Sequence[Mapping[str, Any]], width: int, height: int) -> NDArray[np.uint8] | None:
    """(h, w, 3) picture of figures over steps; None if the rows have none.

    rows: `{"step" or "epoch": n, figure: value, …}`; without either, steps are counted.
    """
    from PIL import Image, ImageDraw, ImageFont

    axis = next((a for a in ("step", "epoch") if rows and all(a in r for r in rows)), "")
    at = [float(r[axis]) for r in rows] if axis else [float(i) for i in range(len(rows))]
    names = [n for n in dict.fromkeys(k for r in rows for k in r) if n != axis and any(_finite(r.get(n)) for r in rows)]
    names = names[: len(SERIES)]
    if not names:
        return None
    s, edge, head = 2, 56, 30
    font = ImageFont.load_default(12 * s)
    picture = Image.new("RGB", (width * s, height * s), PAPER_RGB)
    draw = ImageDraw.Draw(picture)
    left = [n for n in names if LOSS in n]
    tops = {True: _top(rows, left), False: _top(rows, [n for n in names if n not in left])}
    first, last = min(at), max(max(at), min(at) + 1e-9)

    def point(x: float, share: float) -> tuple[float, float]:
        return (
            s * (edge + (x - first) / (last - first) * (width - 2 * edge)),
            s * (height - 40 - min(max(share, 0), 1) * (height - 40 - head - 12)),
        )

    for share in (0, 0.25, 0.5, 0.75, 1):
        a, b = point(first, share), point(last, share)
        draw.line((a, b), fill=LINE, width=s)
        if left:
            draw.text((4 * s, a[1] - 7 * s), f"{share * tops[True]:.3g}", fill=DIM, font=font)
        if len(left) < len(names):
            draw.text((b[0] + 6 * s, b[1] - 7 * s), f"{share * tops[False]:.3g}", fill=DIM, font=font)
    draw.text((s * edge, s * (height - 30)), f"{first:g}", fill=DIM, font=font)
    draw.text((s * (width - edge - 70), s * (height - 30)), f"{last:g} {axis or 'rows'}", fill=DIM, font=font)
    x = float(edge)
    for name, color in zip(names, SERIES, strict=False):
        values = [
            (a, float(r[name]) / tops[name in left]) for a, r in zip(at, rows, strict=True) if _finite(r.get(name))
        ]
        points = [point(a, v) for a, v in values]
        for p, q in pairwise(points):
            draw.line((p, q), fill=color, width=2 * s)
        for px, py in points:
            draw.ellipse((px - 2 * s, py - 2 * s, px + 2 * s, py + 2 * s), fill=color)
        label = f"{name} {values[-1][1]:.4g}"
        draw.text((s * x, 8 * s), label, fill=color, font=font)
        x += font.getlength(label) / s + 16
    return np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS))


def _top(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> float:
    """Upper end of a scale: 1 for shares, else the greatest value."""
    greatest = max((float(r[n]) for r in rows for n in names if _finite(r.get(n))), default=1.0)
    return 1.0 if 0.1 < greatest <= 1.0 and not any(LOSS in n for n in names) else max(greatest, 1e-12)


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and bool(np.isfinite(value))


def _cell(value: Any) -> str:
    if value is None:
        return ""
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    text = " ".join(text.split())
    return text if len(text) <= CELL else text[: CELL - 1] + "…"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
