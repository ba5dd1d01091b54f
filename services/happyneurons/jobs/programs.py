"""Programs that stages call: run to their end, or ended with all they started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from happyneurons.errors import DrainedError

_LOOK_S, _GRACE_S = 0.5, 5.0


def run_program(
    command: Sequence[str],
    log: Path,
    *,
    folder: Path,
    environment: Mapping[str, str],
    limit_s: float,
    stopping: Callable[[], bool],
) -> int:
    """Run a program in a folder; what it says is added to `log`. Returns its exit code, negative for a signal.

    Raises OSError if it cannot be started, TimeoutError after limit_s, DrainedError once `stopping`
    says so. When this returns or raises early, nothing that it started is left.
    """
    with log.open("ab") as sink:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
    deadline = time.monotonic() + limit_s
    try:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(max(0.0, min(_LOOK_S, deadline - time.monotonic())))
            if stopping():
                raise DrainedError(f"{Path(command[0]).name} was ended: the attempt is to end")
            if time.monotonic() >= deadline:
                raise TimeoutError(f"{Path(command[0]).name} ran for {limit_s:g} s")
    finally:
        if process.poll() is None:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and its group: a launcher may have started others, which may not heed the first signal."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_S)
    process.wait()


def last_words(log: Path, besides: str) -> str:
    """The last line of a log that does not begin with `besides`, at most 300 characters."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    said = [line for line in lines if line and not line.startswith(besides)]
    return said[-1][:300] if said else "it said nothing"
