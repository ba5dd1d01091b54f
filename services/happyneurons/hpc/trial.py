"""`hpn site check --submit`: the whole way once, with the smallest real job there is. It costs an allocation.

Nodes are asked for by hand, `ingest` checks four tiny tiles on two ranks, the nodes go back, and what
lies in the store is removed again.
"""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from happyneurons.errors import JobFailedError, UnavailableError, UserError
from happyneurons.executors.balsam.config import BalsamAccess, PoolLimits
from happyneurons.executors.balsam.executor import BalsamExecutor
from happyneurons.executors.balsam.nodes import Nodes
from happyneurons.executors.base import ProcessState, Submission
from happyneurons.hpc.folders import SiteFolder
from happyneurons.jobs.spec import Resources, job_uri, make_spec, save_spec
from happyneurons.stages import load_stage
from happyneurons.store.documents import Store, local_path

RANKS = 2
WALLTIME_MIN = 15
STEP_S = 1.0
CANCEL_S = 30.0


def run_trial(
    name: str, folder: SiteFolder, access: BalsamAccess, pool: PoolLimits, store_uri: str,
    *, wait_s: float, seen: Callable[[str], None] = lambda _: None,
) -> str:  # fmt: skip
    """Carry it out; returns what was seen. `name`: the site's in the sites file; `seen` is told how it fares.

    Raises UserError, UnavailableError (it took longer than `wait_s`) and JobFailedError.
    """
    store = Store(store_uri)
    if local_path(store.uri) is None:
        raise UserError(f"store {store.uri}: the trial's tiles need a store in a folder that the site's nodes see")
    queue = folder.facts.queues.get(pool.queue or folder.facts.default_queue)
    least = queue.min_nodes if queue else 1
    tiles = _write_tiles(store)
    key = ""
    nodes, executor = Nodes(name, folder, access, pool), None
    batch_job = None
    try:
        executor = BalsamExecutor(name, folder, access, pool.model_copy(update={"max_nodes": 0}))
        source = {"source": str(tiles), "pattern": "{z}_{row}_{col}.png", "pixel_size_nm": 8.0}
        spec = make_spec(load_stage("ingest"), inputs={}, params={**source, "section_thickness_nm": 40.0})
        key = spec.key
        save_spec(store, spec)
        batch_job = nodes.request(least, walltime_min=min(WALLTIME_MIN, pool.walltime_min))
        seen(f"batch job {batch_job.id}: {least} node{'s' if least > 1 else ''} of {batch_job.queue}")
        started = time.monotonic()
        resources = Resources(ranks=RANKS, walltime_min=WALLTIME_MIN / 3)
        handle = executor.submit(Submission(job_uri(store, key), "ingest", resources, token=uuid.uuid4().hex))
        _wait(executor, handle, started + wait_s, seen)
        manifest = store.find_json(f"jobs/{key}/manifest.json")
        if manifest is None:
            raise JobFailedError(f"the trial's job ended without a result: {executor.explain(handle)}")
        workers = manifest["provenance"]["workers"]
        if workers != RANKS:
            raise JobFailedError(f"{workers} ranks worked, not {RANKS}: the launcher is not of the MPI that ranks load")
        return f"{workers} ranks on {manifest['provenance']['host']}, {time.monotonic() - started:.0f} s in all"
    finally:
        if batch_job is not None:
            nodes.release(batch_job.id, force=True)
        nodes.close()
        if executor is not None:
            executor.close()
        shutil.rmtree(tiles, ignore_errors=True)
        for prefix in (f"jobs/{key}", f"artifacts/{key}") if key else ():
            for path in list(store.list(prefix)):
                store.delete(path)


def _wait(executor: BalsamExecutor, handle: str, deadline: float, seen: Callable[[str], None]) -> None:
    """Until the job's processes have ended. Raises UnavailableError if that takes too long."""
    told = ""
    while executor.poll([handle])[handle].state is not ProcessState.EXITED:
        text = executor.explain(handle)
        if text != told:
            seen(text)
            told = text
        if time.monotonic() > deadline:
            executor.cancel(handle)  # by a thread of its own, which has to get round to it
            last = time.monotonic() + CANCEL_S
            while executor.poll([handle])[handle].state is not ProcessState.EXITED and time.monotonic() < last:
                time.sleep(STEP_S)
            raise UnavailableError(f"the trial's job did not end in time: {text}")
        time.sleep(STEP_S)


def _write_tiles(store: Store) -> Path:
    """Two sections of two tiles, with a texture; a folder of their own in the store."""
    root = local_path(store.uri)
    assert root is not None
    folder = root / ".selftest" / uuid.uuid4().hex
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for z in range(2):
        for col in range(2):
            tile = random.integers(0, 255, (64, 64), dtype=np.uint8)
            Image.fromarray(tile).save(folder / f"{z}_0_{col}.png")
    return folder
