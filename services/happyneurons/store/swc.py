"""SWC text of a skeleton. Format: neuronland.org, "SWC+"; its reader is happyneurons.store.skeletons.parse_swc."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

SOMA = 1


def swc_text(
    vertices_nm: NDArray[Any],
    edges: NDArray[Any],
    radius_nm: NDArray[Any],
    *,
    types: NDArray[Any] | None = None,
    unit_nm: float = 1000.0,
    digits: int = 4,
    comments: Sequence[str] = (),
) -> tuple[bytes, list[float]]:
    """(text, lengths in nm of the edges that were left out): a tree for each connected part, parents before children.

    vertices_nm (n, 3), x y z; edges (m, 2), vertex numbers; radius_nm (n,); types (n,): SWC's own, 0 if None. What is
    written is in units of `unit_nm`, with so many digits after the point. SWC knows no loops: the edge by which a walk
    through the vertices comes back to one that it has seen is left out. Trees start at a vertex of type 1 (cell body),
    or at an end, so as not to start in the middle of a branch.
    """
    count = len(vertices_nm)
    pairs = np.sort(np.asarray(edges, np.int64).reshape(-1, 2), axis=1)
    pairs = np.unique(pairs[pairs[:, 0] != pairs[:, 1]], axis=0)
    neighbours: list[list[int]] = [[] for _ in range(count)]
    for a, b in pairs.tolist():
        neighbours[a].append(b)
        neighbours[b].append(a)
    kind = np.zeros(count, np.int64) if types is None else types
    rows: list[str] = []
    number: dict[int, int] = {}
    kept: set[tuple[int, int]] = set()
    # Floats first, then rounding: float32 has too few digits for both.
    xyz = (np.asarray(vertices_nm, np.float64).reshape(-1, 3) / unit_nm).tolist()
    radii = (np.asarray(radius_nm, np.float64) / unit_nm).tolist()
    for root in sorted(range(count), key=lambda v: (kind[v] != SOMA, len(neighbours[v]) != 1, v)):
        stack = [(root, -1)]
        while stack:
            vertex, parent = stack.pop()
            if vertex in number:
                continue
            number[vertex] = len(number) + 1
            if parent >= 0:
                kept.add((min(vertex, parent), max(vertex, parent)))
            place = " ".join(f"{v:.{digits}f}" for v in (*xyz[vertex], radii[vertex]))
            rows.append(f"{number[vertex]} {int(kind[vertex])} {place} {number.get(parent, -1)}")
            stack.extend((n, vertex) for n in sorted(neighbours[vertex], reverse=True) if n not in number)
    dropped = np.array([pair for pair in pairs.tolist() if tuple(pair) not in kept], np.int64).reshape(-1, 2)
    points = np.asarray(vertices_nm, np.float64).reshape(-1, 3)
    left_out: list[float] = np.linalg.norm(points[dropped[:, 0]] - points[dropped[:, 1]], axis=1).tolist()
    lines = [f"# {line}" for line in comments]
    if left_out:
        lines.append(f"# loops opened {len(left_out)}, edges of {sum(left_out):.1f} nm left out")
    return ("\n".join([*lines, *rows]) + "\n").encode(), left_out
