"""Reading the next box while the one before is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

Read = Callable[[Sequence[int], Sequence[int]], np.ndarray]


def read_ahead(read: Read, boxes: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Iterator[np.ndarray]:
    """The blocks of the boxes, in their order, each read by another thread while the one before is in use.

    Two blocks are in memory at most: that in use and the next. What reading a box raises is raised
    where that box would have come, after those before it.
    """
    if len(boxes) <= 1:
        yield from (read(*box) for box in boxes)
        return
    with ThreadPoolExecutor(1, "read-ahead") as thread:
        ahead = thread.submit(read, *boxes[0])
        for following in boxes[1:]:
            block, ahead = ahead.result(), thread.submit(read, *following)
            yield block
            del block
        yield ahead.result()
