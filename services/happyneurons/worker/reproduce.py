"""Doing a single task of a job again, in the open, to see why it failed."""

from __future__ import annotations

import json

import click

from happyneurons.errors import UserError
from happyneurons.jobs.spec import load_spec, parse_job_uri
from happyneurons.worker.farm import JobOnRank, enter_job, leave_job


def run_single_task(uri: str, task_path: str, threads: int) -> None:
    """Run `ROUND/KEY` here; its exception is not caught. Nothing is journaled or published."""
    round_name, _, key = task_path.partition("/")
    store, job_key = parse_job_uri(uri)
    state = enter_job(JobOnRank(store.uri, load_spec(store, job_key), threads), 0)
    try:
        for round_ in state.rounds:
            if round_.name != round_name:
                continue
            for task in round_.plan(state.context):
                if task.key == key:
                    result = round_.run(task, state.context)
                    click.echo(json.dumps(dict(result.data)))
                    return
        raise UserError(f"job {uri}: no task {task_path!r}")
    finally:
        leave_job()
