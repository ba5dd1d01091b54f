"""Pictures of a training: curves, and patches with what was wanted and what was predicted.

PNG bytes by OpenCV, the same for the same figures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from happyneurons.ffn.examples import Patch

WIDTH, HEIGHT, EDGE = 720, 360, 56
COLOURS = {"loss": (60, 60, 60), "f1": (40, 140, 40), "precision": (200, 120, 40), "recall": (40, 40, 200)}
"""Blue, green, red."""


def curves_png(history: Sequence[Mapping[str, float]], colours: Mapping[str, tuple[int, int, int]] = COLOURS) -> bytes:
    """Loss (scale on the left, from 0) and F1, precision and recall (right, 0 to 1) over steps.

    colours: the figures that are drawn, and in which colour.
    """
    import cv2

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
    return _png(canvas)


def samples_png(patches: Sequence[Patch], *, zoom: int = 3) -> bytes:
    """A row for each patch, its middle section: the image, what was wanted, the predicted probability."""
    rows = []
    for patch in patches:
        middle = patch.centre[0]
        tissue = np.clip(128 + 50 * patch.image[middle], 0, 255)
        wanted = np.where(patch.wanted[middle], 255.0, 0.0)
        logits = np.clip(np.nan_to_num(patch.seed[middle].astype(np.float64)), -30, 30)
        predicted = 255.0 / (1.0 + np.exp(-logits))
        rows.append(np.pad(np.hstack([np.pad(a, 1, constant_values=90) for a in (tissue, wanted, predicted)]), 1))
    width = max(r.shape[1] for r in rows)
    picture = np.vstack([np.pad(r, ((0, 0), (0, width - r.shape[1]))) for r in rows])
    return _png(np.kron(np.rint(picture).astype(np.uint8), np.ones((zoom, zoom), np.uint8)))


def _png(picture: np.ndarray) -> bytes:
    import cv2

    done, data = cv2.imencode(".png", picture)
    assert done
    return bytes(data)
