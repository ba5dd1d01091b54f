"""A bar for a command that works through a number of things."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def counting_bar(name: str, *, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """Shows (done, of all) as it is told them, on standard error and on a terminal only; gone at the end."""
    bars = Progress(
        TextColumn("  {task.description}"), BarColumn(bar_width=30), MofNCompleteColumn(), TimeRemainingColumn(),
        transient=True, disable=quiet or not sys.stderr.isatty(), console=Console(file=sys.stderr),
    )  # fmt: skip
    with bars:
        bar = bars.add_task(name, total=None)

        def told(done: int, total: int) -> None:
            bars.update(bar, completed=done, total=total)

        yield told
