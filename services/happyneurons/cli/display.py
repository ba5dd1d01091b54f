"""Showing a run while it goes on: a line for what happened, a bar for what is under way."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from happyneurons.client.plain import short
from happyneurons.client.runs import Run
from happyneurons.v1 import jobs_pb2, pipelines_pb2

MARKS = {"succeeded": "[green]✓[/]", "failed": "[red]✗[/]", "cancelled": "[yellow]–[/]", "skipped": "[dim]–[/]"}


class RunDisplay:
    """Feed it a run's events. Bars only on a terminal; everything goes to standard error."""

    def __init__(self, quiet: bool = False) -> None:
        self._console = Console(file=sys.stderr, highlight=False, soft_wrap=True, quiet=quiet)
        self._bars = Progress(
            TextColumn("  {task.description:<18}"), BarColumn(bar_width=30), TextColumn("{task.fields[at]}"),
            TimeElapsedColumn(), TextColumn("{task.fields[eta]}"),
            console=self._console, transient=True, disable=quiet or not self._console.is_terminal,
        )  # fmt: skip
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> RunDisplay:
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._bars.stop()

    def say(self, text: str) -> None:
        """A line; rich markup is understood."""
        self._console.print(text)

    def event(self, event: pipelines_pb2.RunEvent) -> None:
        """Show an event of the run."""
        if event.type == "job_progress":
            self.advance(event.subject, event.job.job.progress)
            return
        if event.subject and event.type.startswith("job_"):
            self._job(event)
        elif event.type == "gate_waiting":
            self.say(f"[yellow]?[/] gate {escape(event.subject)}: {escape(event.message)}")
        elif event.type == "gate_decided":
            verdict = short(event.gate, "state")
            by = f" by {event.gate.decided_by}" if event.gate.decided_by else ""
            comment = f": {event.message}" if event.message else ""
            self.say(f"  gate {escape(event.subject)} {verdict}{escape(by)}{escape(comment)}")
        elif event.type == "batch_opened":
            self.say(f"  {escape(event.message)}")
        elif event.type == "acquisition_ended":
            self.say(f"  the acquisition has ended: {escape(event.message)}")
        elif event.type == "run_retried":
            self.say("  retried")
        elif event.type == "run_cancel_requested":
            self.say("  asked to stop")

    def _job(self, event: pipelines_pb2.RunEvent) -> None:
        name, job = event.subject, event.job.job
        state = short(job, "state")
        if event.type == "job_started":
            self.advance(name, job.progress)
            if not self._console.is_terminal:
                self.say(f"  {escape(name)} started")
            return
        if event.type == "job_submitted":
            return
        self._end(name)
        if event.type == "job_interrupted":
            self.say(f"[yellow]↻[/] {escape(name)} interrupted: {escape(event.message)}; it is attempted again")
        elif event.type == "job_succeeded":
            self.say(f"{MARKS[state]} {escape(name)} {'reused' if job.reused else seconds(job)}")
        else:
            self.say(f"{MARKS.get(state, ' ')} {escape(name)} {state}: {escape(event.message)}")

    def advance(self, name: str, progress: jobs_pb2.TaskProgress) -> None:
        """Show how far a job is."""
        fields: dict[str, Any] = {"at": "", "eta": ""}
        total: float | None = None
        if progress.tasks_total:
            total = float(progress.tasks_total)
            rounds = f" ({progress.round_index + 1}/{progress.rounds})" if progress.rounds > 1 else ""
            fields["at"] = f"{progress.round}{rounds} {progress.tasks_done}/{progress.tasks_total}"
        if progress.HasField("eta") and progress.tasks_done < progress.tasks_total:
            fields["eta"] = f"{human_s(progress.eta.ToMilliseconds() / 1000)} left"
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(name, total=total, **fields)
        self._bars.update(self._tasks[name], total=total, completed=progress.tasks_done, **fields)

    def _end(self, name: str) -> None:
        task = self._tasks.pop(name, None)
        if task is not None:
            self._bars.remove_task(task)


def follow(run: Run, *, quiet: bool = False) -> None:
    """Show a run until it is final."""
    with RunDisplay(quiet) as display:
        if run.proto.HasField("acquisition") and not run.proto.acquisition.ended:
            display.say("  it takes sections while it goes on; feed it with one of these, and end it:")
            for command in ("watch FOLDER --run {}", "report {} SECTION.json", "end {}"):
                display.say(f"    hpn acquire {command.format(run.id)} --orchestrator {run.address}")
        for event in run.watch():
            display.event(event)
            if event.type == "gate_waiting":
                for verb in ("approve", "reject"):
                    display.say(f"    hpn {verb} {run.id} {event.subject} --orchestrator {run.address}")


def seconds(job: jobs_pb2.Job) -> str:
    """How long a job took, for people."""
    if not job.HasField("start_time") or not job.HasField("end_time"):
        return ""
    return human_s((job.end_time.ToMilliseconds() - job.start_time.ToMilliseconds()) / 1000)


def human_s(seconds: float) -> str:
    """A length of time for people: `4.2 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
