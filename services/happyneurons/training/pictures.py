"""Pictures of a training: PNG bytes by OpenCV, the same for the same figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

WIDTH, HEIGHT, EDGE = 720, 360, 56
LOSS, SCORE, PRECISION, RECALL = (60, 60, 60), (40, 140, 40), (200, 120, 40), (40, 40, 200)
"""Colours of the curves: blue, green, red."""


def curves_png(history: Sequence[Mapping[str, float]], score: str) -> bytes:
    """Loss (scale on the left, from 0) and the score, precision and recall (right, 0 to 1) over steps."""
    import cv2

    colours = {"loss": LOSS, score: SCORE, "precision": PRECISION, "recall": RECALL}

    canvas = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    last = max((row["step"] for row in history), default=1.0) or 1.0
    top = max((row["loss"] for row in history if "loss" in row), default=1.0) or 1.0

    def point(step: float, share: float) -> tuple[int, int]:
        share = min(max(share, 0.0), 1.0)
        return (EDGE + round(step / last * (WIDTH - 2 * EDGE)), HEIGHT - EDGE - round(share * (HEIGHT - 2 * EDGE)))

    def text(words: str, at: tuple[int, int], colour: tuple[int, int, int] = (0, 0, 0)) -> None:
        cv2.putText(canvas, words, at, cv2.FONT_HERSHEY_SIMPLEX, 0.42, colour, 1, cv2.LINE_AA)

    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        left, right = point(0, share), point(last, share)
        cv2.line(canvas, left, right, (225, 225, 225), 1)
        text(f"{share * top:.3g}", (6, left[1] + 4))
        text(f"{share:.2f}", (right[0] + 8, right[1] + 4))
    text("0", (EDGE - 4, HEIGHT - EDGE + 18))
    text(f"{last:.0f} steps", (WIDTH - EDGE - 60, HEIGHT - EDGE + 18))
    for place, (name, colour) in enumerate(colours.items()):
        scale = top if name == "loss" else 1.0
        points = [point(row["step"], row[name] / scale) for row in history if name in row]
        for a, b in pairwise(points):
            cv2.line(canvas, a, b, colour, 2, cv2.LINE_AA)
        for at in points:
            cv2.circle(canvas, at, 2, colour, -1, cv2.LINE_AA)
        text(f"{name} {history[-1].get(name, 0.0):.4f}" if history else name, (EDGE + 150 * place, 24), colour)
    return png(canvas)


def png(picture: np.ndarray) -> bytes:
    """A picture (y, x) or (y, x, bgr), uint8, as PNG."""
    import cv2

    done, data = cv2.imencode(".png", picture)
    assert done
    return bytes(data)
