"""A box read and worked on in pieces, by several threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from happyneurons.formats.base import Writer
from happyneurons.formats.blocks import Box
from happyneurons.store.triples import Triple, triple

Result = TypeVar("Result")


def in_threads(work: Callable[[Triple, Triple], Result], boxes: Iterable[Box], threads: int) -> Iterator[Result]:
    """`work` of each box, in their order; no more than two boxes a thread are begun before they are asked for.

    What a piece raises is raised where its result would have come; those not begun by then are left.
    """
    begun: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads, "pieces") as pool:
        try:
            for box in boxes:
                begun.append(pool.submit(work, *box))
                if len(begun) > 2 * threads:
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def write_block(writer: Writer, level: int, start_zyx: Sequence[int], block_zyx: np.ndarray) -> None:
    """`write` by `write_from`."""

    def read(low: Triple, high: Triple) -> np.ndarray:
        return block_zyx[tuple(slice(a - o, b - o) for a, b, o in zip(low, high, start_zyx, strict=True))]

    writer.write_from(level, triple(start_zyx), triple(np.add(start_zyx, block_zyx.shape)), read)
