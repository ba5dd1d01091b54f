"""Ends everything that a rig started, even if the tests themselves were killed: reaper.py FOLDER

Waits until its standard input closes (whoever started it is gone, or done), then kills every process that has
HPN_RIG=FOLDER in its environment. Daemons, what Slurm started and what that started all inherit it.
"""

from __future__ import annotations

import contextlib
import sys
import time

import psutil

LIMIT_S = 30.0


def members(folder: str) -> list[psutil.Process]:
    """Processes of the rig in this folder."""
    found = []
    for process in psutil.process_iter(["name"]):
        with contextlib.suppress(psutil.Error):
            # Two write their title over their environment; both work in the folder.
            hidden = process.info["name"].startswith(("redis", "postgres"))
            if process.cwd().startswith(folder) if hidden else process.environ().get("HPN_RIG") == folder:
                found.append(process)
    return found


def reap(folder: str) -> list[psutil.Process]:
    """Kill until nothing is left; what is left after the limit."""
    deadline = time.monotonic() + LIMIT_S
    while found := members(folder):
        for process in found:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(found, timeout=1)
        if time.monotonic() > deadline:
            return members(folder)
    return []


if __name__ == "__main__":
    sys.stdin.read()
    sys.exit(1 if reap(sys.argv[1]) else 0)
