"""Attempts of a stage's job in processes of their own: with many ranks, or killed in the middle."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from happyneurons.jobs.spec import JobSpec, Resources, job_uri
from happyneurons.jobs.stage import Context, Task, TaskResult
from happyneurons.store.documents import Store
from happyneurons.worker.launch import Launch, stage_command, stage_environment


def files(store: Store, key: str) -> dict[str, bytes]:
    """Bytes of all that a job left behind, by path."""
    data = Store(store.url(f"artifacts/{key}"))
    return {path: data.get(path) for path in data.list("")}


def run_with_ranks(store: Store, spec: JobSpec, ranks: int) -> None:
    """One attempt by MPI, as an executor starts it. Raises CalledProcessError if it fails."""
    resources = Resources(ranks=ranks)
    command = stage_command(Launch(job_uri(store, spec.key), resources))
    subprocess.run(command, env=stage_environment(resources), check=True, capture_output=True)


def run_and_die(store: Store, spec: JobSpec, round_name: str, after: int) -> int:
    """One attempt that dies by SIGKILL right after the `after`-th task of a round wrote what it writes."""
    arguments = [store.uri, spec.key, spec.stage, round_name, str(after)]
    return subprocess.run([sys.executable, __file__, *arguments], check=False, capture_output=True).returncode


def _die(store_uri: str, key: str, stage_name: str, round_name: str, after: str) -> None:
    from happyneurons.stages import load_stage
    from happyneurons.worker.run import RunOptions, run_job_here

    stage = load_stage(stage_name)
    rounds = stage.rounds

    def rounds_that_die(self: object, context: Context) -> object:
        found = rounds(self, context)  # type: ignore[arg-type]
        (deadly,) = (r for r in found if r.name == round_name)
        run, left = deadly.run, [int(after)]

        def run_then_die(task: Task, context: Context) -> TaskResult:
            result = run(task, context)
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        deadly.run = run_then_die  # type: ignore[method-assign]
        return found

    stage.rounds = rounds_that_die  # type: ignore[assignment, method-assign]
    sys.exit(run_job_here(Store(store_uri), key, RunOptions(takeover=True)))


if __name__ == "__main__":
    _die(*sys.argv[1:])
