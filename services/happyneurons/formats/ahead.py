"""Reading the next box while the one before is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle

import numpy as np

from happyneurons.formats.base import Memory

Read = Callable[[Memory, Sequence[int], Sequence[int]], np.ndarray]


def two_memories() -> tuple[Memory, Memory]:
    """For `read_ahead`: the block in use, and the next. To be kept for the boxes that come later."""
    return Memory(), Memory()


def read_ahead(
    read: Read, boxes: Sequence[tuple[Sequence[int], Sequence[int]]], memories: tuple[Memory, Memory]
) -> Iterator[np.ndarray]:
    """The blocks of the boxes, in their order, each read by another thread while the one before is in use.

    Two blocks are in memory at most: that in use and the next; one is gone when the next is asked for. What reading a
    box raises is raised where that box would have come, after those before it.
    """
    if len(boxes) <= 1:
        yield from (read(memories[0], *box) for box in boxes)
        return
    turns = cycle(memories)
    with ThreadPoolExecutor(1, "read-ahead") as thread:
        ahead = thread.submit(read, next(turns), *boxes[0])
        for following in boxes[1:]:
            block, ahead = ahead.result(), thread.submit(read, next(turns), *following)
            yield block
            del block
        yield ahead.result()
