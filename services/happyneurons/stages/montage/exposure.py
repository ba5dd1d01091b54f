"""Brightness and contrast of the tiles of a section, evened out from what overlapping tiles both show."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from happyneurons.stages.montage.match import PairMatches
from happyneurons.stages.montage.shading import Shading

Floats = NDArray[np.float64]

_GRAIN = 4096.0


def exposures(tiles: int, pairs: Sequence[PairMatches], shading: Shading | None = None) -> tuple[Floats, Floats]:
    """(gain, offset) of every tile: grey = gain * raw + offset. Their means over the section are 1 and 0.

    raw: without the shading, where it is known. The gains make contrasts in the overlaps equal, the
    offsets then the means; both are weak least squares, so that tiles which nothing joins keep gain 1.
    """
    weights = np.array([float(p.matches.score.sum()) for p in pairs])
    log_ratio = np.array([np.log((p.contrast_a + 1e-3) / (p.contrast_b + 1e-3)) for p in pairs])
    log_gain = _balance(tiles, pairs, log_ratio, weights, typical=0.3)
    gain = np.clip(np.exp(log_gain), 0.5, 2.0)
    means = [_means(p, shading) for p in pairs]
    difference = np.array([gain[p.a] * a - gain[p.b] * b for p, (a, b) in zip(pairs, means, strict=True)])
    # A gain around 0 would brighten the tile too: its offset brings the typical grey back.
    typical = float(np.mean(means)) if pairs else 0.0
    start = typical * (1 - gain)
    start -= start.mean()
    difference += np.array([start[p.a] - start[p.b] for p in pairs]) if pairs else 0.0
    offset = start + _balance(tiles, pairs, difference, weights, typical=30.0)
    return np.rint(gain * _GRAIN) / _GRAIN, np.rint(offset * _GRAIN) / _GRAIN


def _means(pair: PairMatches, shading: Shading | None) -> tuple[float, float]:
    """Grey levels of the tissue that two tiles share, in each of them."""
    a, b = pair.greys.a, pair.greys.b
    if shading is not None:
        a, b = a * shading.gain(pair.greys.xy_a), b * shading.gain(pair.greys.xy_b)
    return float(a.mean()), float(b.mean())


def _balance(tiles: int, pairs: Sequence[PairMatches], excess: Floats, weights: Floats, typical: float) -> Floats:
    """Corrections c with c_a - c_b = -excess for each pair, of mean 0; `typical` is their expected size."""
    rows = np.zeros((len(pairs) + tiles, tiles))
    goals = np.zeros(len(pairs) + tiles)
    for k, p in enumerate(pairs):
        w = np.sqrt(weights[k]) / typical
        rows[k, p.a], rows[k, p.b], goals[k] = w, -w, -excess[k] * w
    rows[len(pairs) :] = 0.05 / typical * np.eye(tiles)
    result = np.linalg.lstsq(rows, goals, rcond=None)[0]
    return np.asarray(result - result.mean(), dtype=np.float64)


def lookup_table(gain: float, offset: float) -> NDArray[np.uint8]:
    """(256,) grey value → corrected grey value. 0 stays 1 at least: 0 means no data in a stack."""
    values = np.rint(gain * np.arange(256.0) + offset)
    return np.clip(values, 1, 255).astype(np.uint8)
