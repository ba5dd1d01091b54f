"""`hpn-stage selftest`: what a rank finds where it is run, told before a job has to find out.

All ranks take part; rank 0 prints one JSON document. Nothing is left behind.
"""

from __future__ import annotations

import os
import re
import socket
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from happyneurons import __version__
from happyneurons.errors import HappyError
from happyneurons.store.documents import Store

WRITERS = 8


def selftest(store_uri: str | None = None) -> dict[str, Any] | None:
    """Run it on all ranks: the document on rank 0, its `problems` empty if all is well; None on the others."""
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    mine = {
        "host": socket.gethostname(),
        "libmpi": mpi_libraries(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": os.environ.get("OMP_NUM_THREADS", ""),
        "scratch": scratch_folder(),
        "problem": "",
    }
    total = world.allreduce(world.rank)
    if total != world.size * (world.size - 1) // 2:
        mine["problem"] = f"the sum of ranks came out as {total} of {world.size} ranks"
    ranks = world.gather(mine, root=0)
    if ranks is None:
        return None
    problems = [f"rank {n}: {rank['problem']}" for n, rank in enumerate(ranks) if rank["problem"]]
    problems += [f"rank {n}: {rank['scratch']}" for n, rank in enumerate(ranks) if "cannot" in rank["scratch"]]
    document = {
        "version": __version__,
        "image": os.environ.get("HPN_IMAGE_NAME", ""),
        "python": sys.version.split()[0],
        "ranks": world.size,
        "mpi": " ".join(MPI.Get_library_version().split())[:200],
        "hosts": sorted({rank["host"] for rank in ranks}),
        "libmpi": sorted({path for rank in ranks for path in rank["libmpi"]}),
        "cores": [rank["cores"] for rank in ranks],
        "threads": ranks[0]["threads"],
        "scratch": ranks[0]["scratch"],
    }
    if store_uri is not None:
        document["store"] = store_uri
        problems += store_problems(store_uri)
    return {**document, "problems": problems}


def store_problems(uri: str) -> list[str]:
    """What a store lacks that jobs rely on: of many writers of a path one wins, and reads give what it wrote."""
    try:
        store = Store(uri)
        path = f".selftest/{socket.gethostname()}-{os.getpid()}-{time.time_ns():x}"
        values = [f"writer {number}".encode() for number in range(WRITERS)]
        begin = threading.Barrier(WRITERS)

        def create(value: bytes) -> bool:
            begin.wait()
            return store.create(path, value)

        try:
            with ThreadPoolExecutor(WRITERS) as pool:
                won = list(pool.map(create, values))
            stored = store.get(path)
            late = store.create(path, b"too late")
        finally:
            store.delete(path)
        winners = [value for value, win in zip(values, won, strict=True) if win]
        if len(winners) != 1 or late:
            problem = (
                f"store {uri}: {len(winners) + late} of {WRITERS + 1} writers were told that they created the same "
                "document; this store cannot do put-if-absent, so two attempts of a job could both publish"
            )
            return [problem]
        if stored != winners[0]:
            return [f"store {uri}: it gave back {stored!r} after {winners[0]!r} was written"]
        if store.exists(path):
            return [f"store {uri}: a deleted document is still there"]
    except HappyError as error:
        return [str(error)]
    return []


def mpi_libraries() -> list[str]:
    """Files of the MPI library that this process has loaded."""
    found = set()
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = line.split(maxsplit=5)[5] if len(line.split(maxsplit=5)) == 6 else ""
        if re.fullmatch(r"libmpi(ch|_\w+)?(-[0-9a-f]+)?\.so[.0-9]*", Path(path).name):
            found.add(path)
    return sorted(found)


def scratch_folder() -> str:
    """The folder for temporary files, tried out; or why there is none."""
    try:
        with tempfile.NamedTemporaryFile(prefix="hpn-selftest-") as file:
            file.write(b"x")
            file.flush()
        return tempfile.gettempdir()
    except OSError as error:
        return f"temporary files cannot be written (TMPDIR={os.environ.get('TMPDIR', '')}): {error}"
