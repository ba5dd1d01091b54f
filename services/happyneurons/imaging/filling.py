"""Nodes of a grid that have no place of their own."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def filled(sources: Floats, targets: Floats, valid: NDArray[np.bool_]) -> Floats:
    """(h, w, 2) targets of nodes at (h, w, 2) sources, those that are not valid (h, w) by extrapolation.

    The displacement there is that of the affine map nearest to the valid nodes, plus a membrane
    (harmonic, free at the border) through what the valid nodes differ from it.
    """
    if valid.all():
        return targets
    shift = (targets - sources)[valid]
    centre = sources[valid].mean(axis=0)
    # Least norm: a direction in which no two valid nodes lie gets no slope.
    slope = np.linalg.lstsq(sources[valid] - centre, shift - shift.mean(axis=0), rcond=1e-6)[0]
    trend = sources + shift.mean(axis=0) + (sources - centre) @ slope
    rest = np.zeros_like(targets)
    rest[valid] = targets[valid] - trend[valid]
    return np.where(valid[..., None], targets, trend + _membrane(rest, valid))


def _membrane(values: Floats, valid: NDArray[np.bool_]) -> Floats:
    """Values of the valid nodes, (h, w, c), carried on into the others: each is its neighbours' mean."""
    import scipy.sparse as sp
    from scipy.sparse.linalg import spsolve

    height, width = valid.shape
    index = np.arange(height * width).reshape(valid.shape)
    a = np.concatenate([index[:, :-1].ravel(), index[:-1].ravel()])
    b = np.concatenate([index[:, 1:].ravel(), index[1:].ravel()])
    size = height * width
    links = sp.coo_matrix((np.ones(2 * len(a)), (np.append(a, b), np.append(b, a))), (size, size)).tocsr()
    laplacian = (sp.diags(np.asarray(links.sum(axis=1)).ravel()) - links).tocsr()
    known, unknown = np.flatnonzero(valid), np.flatnonzero(~valid)
    flat = values.reshape(size, -1).copy()
    right = -laplacian[unknown][:, known] @ flat[known]
    flat[unknown] = spsolve(laplacian[unknown][:, unknown].tocsc(), right).reshape(right.shape)
    return flat.reshape(values.shape)
