"""Carrying out one attempt of a job: rank 0's loop around the farm.

What is promised (docs/jobs.md): finished tasks are journaled and never redone; the result is
published once or not at all; SIGTERM and the coming end of the walltime drain; a task that fails
twice is quarantined and the others go on; a task that kills its rank is found and quarantined.
"""

from __future__ import annotations

import contextlib
import logging
import shlex
import signal
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass

from happyneurons.errors import (
    EXIT_FAILED,
    EXIT_OK,
    EXIT_TRY_AGAIN,
    EXIT_USAGE,
    CancelledError,
    DrainedError,
    HappyError,
    StoreError,
    SupersededError,
    UserError,
)
from happyneurons.jobs.attempts import Attempt, EndState, claim, owner_id
from happyneurons.jobs.journal import Entry, JournalWriter, forget_journal, read_journal
from happyneurons.jobs.spec import JobSpec, job_uri, load_spec, parse_job_uri
from happyneurons.jobs.stage import Round, Task
from happyneurons.store.documents import Store
from happyneurons.worker.farm import (
    Farm,
    JobOnRank,
    Outcome,
    RankState,
    SerialFarm,
    abort_all,
    current_rank,
    enter_job,
    execute,
    leave_job,
    mpi_farm,
)
from happyneurons.worker.logs import StoreLogHandler
from happyneurons.worker.manifest import make_manifest
from happyneurons.worker.progress import Heartbeat, Progress
from happyneurons.worker.suspects import Suspects, find_suspects

log = logging.getLogger("happyneurons.worker")

TASK_TRIES = 2
WALLTIME_MARGIN_S = 30.0
INFRASTRUCTURE_TRIES = 4


@dataclass(frozen=True)
class RunOptions:
    """How this attempt is to be carried out; nothing here changes its result."""

    threads: int = 1
    takeover: bool = False
    """The caller knows that the open attempt's process is gone."""
    walltime_s: float | None = None
    """Drain before this many seconds are over."""
    drain_grace_s: float = 25.0
    """Time that running tasks get to finish after a signal; batch systems give about 30 s."""
    retry_quarantined: bool = False
    heartbeat_s: float = 2.0


def check_installed(spec: JobSpec) -> None:
    """Raise UserError if the job's stage is not installed here, or another version of it.

    Before an attempt begins: that would count as interrupted, and be tried again.
    """
    from happyneurons.stages import load_stage

    stage = load_stage(spec.stage)
    if stage.version != spec.stage_version:
        raise UserError(
            f"job {spec.key} is for version {spec.stage_version} of {stage.name}, installed here is {stage.version}: "
            "use an image of the release that made the job, or submit its pipeline again with this release"
        )


def run_job_uri(uri: str, options: RunOptions) -> int:
    """Attempt a job as `hpn-stage run` does, on all MPI ranks; returns the exit code."""
    started = time.monotonic()
    attempts: list[Attempt] = []

    def begin() -> JobOnRank | None:
        store, key = parse_job_uri(uri)
        spec = load_spec(store, key)
        check_installed(spec)
        attempt = claim(store, key, owner_id(), takeover=options.takeover)
        if attempt is None:
            log.info("job %s has its result already", key)
            return None
        attempts.append(attempt)
        return JobOnRank(store.uri, spec, options.threads, attempt.number)

    with mpi_farm(begin) as work:
        if work is None:
            return EXIT_OK
        farm, job = work
        return Coordinator(attempts[0], farm, job, current_rank(), options, started).run()


def run_job_here(store: Store, key: str, options: RunOptions | None = None) -> int:
    """Attempt a job in this very process, without MPI (tests, notebooks, `-n 1` debugging)."""
    options = options or RunOptions()
    spec = load_spec(store, key)
    check_installed(spec)
    attempt = claim(store, key, owner_id(), takeover=options.takeover)
    if attempt is None:
        return EXIT_OK
    job = JobOnRank(store.uri, spec, options.threads, attempt.number)
    state = enter_job(job, 0)
    try:
        return Coordinator(attempt, SerialFarm(), job, state, options, time.monotonic()).run()
    finally:
        leave_job()


class Coordinator:
    """Rank 0 of one attempt."""

    def __init__(
        self, attempt: Attempt, farm: Farm, job: JobOnRank, state: RankState, options: RunOptions, started: float
    ) -> None:
        self.attempt, self.farm, self.job, self.state, self.options = attempt, farm, job, state, options
        self.store = attempt.store
        self.journal = JournalWriter(self.store, attempt.key, attempt.number)
        self.progress = Progress(job.spec.stage, farm.workers)
        self.logs = StoreLogHandler(self.store, attempt.key, attempt.number, 0)
        self.heartbeat = Heartbeat(attempt, self.progress, self.journal, self.logs, options.heartbeat_s)
        self.deadline = None if options.walltime_s is None else started + options.walltime_s
        if self.deadline is not None:
            self.heartbeat.ends(self.deadline - WALLTIME_MARGIN_S, abandon_after_s=options.drain_grace_s + 2)
        self.suspects = Suspects()
        self.quarantined: list[str] = []

    def run(self) -> int:
        """Carry the attempt to its end; returns the exit code."""
        root = logging.getLogger("happyneurons")
        root.addHandler(self.logs)
        previous_level = root.level
        root.setLevel(min(previous_level or logging.INFO, logging.INFO))
        try:
            with self._signals(), self.heartbeat:
                return self._run()
        finally:
            root.removeHandler(self.logs)
            root.setLevel(previous_level)

    def _run(self) -> int:
        key, number = self.attempt.key, self.attempt.number
        log.info("job %s, stage %s, attempt %d, %d ranks", key, self.job.spec.stage, number, self.farm.workers)
        try:
            self._work()
            return EXIT_OK
        except UserError as error:
            return self._end(EndState.FAILED_USER, str(error), EXIT_USAGE, violations=error.violations)
        except DrainedError as error:
            return self._end(EndState.DRAINED, str(error), EXIT_TRY_AGAIN)
        except CancelledError as error:
            return self._end(EndState.CANCELLED, str(error), EXIT_FAILED)
        except SupersededError as error:
            log.error("%s", error)
            return EXIT_TRY_AGAIN
        except TasksFailedError as error:
            return self._end(EndState.FAILED_TASKS, str(error), EXIT_FAILED, quarantined=self.quarantined)
        except Exception as error:
            log.exception("attempt %d of job %s failed", number, key)
            return self._end(EndState.ERROR, f"{type(error).__name__}: {error}", EXIT_TRY_AGAIN)

    def _work(self) -> None:
        context, stage = self.state.context, self.state.stage
        self.suspects = find_suspects(self.store, self.attempt.key, self.attempt.number)
        stage.check(context)
        rounds = self.state.rounds
        names = [r.name for r in rounds]
        if len(set(names)) != len(names):
            raise TypeError(f"stage {stage.name}: two rounds have the same name")
        for index, round_ in enumerate(rounds):
            self.progress.enter_round(round_.name, index, len(rounds))
            self._run_round(index, round_)
            self.journal.flush()
            # Here, not after the last round: what follows would be made without the tasks that are missing.
            if len(self.quarantined) > self.job.spec.allow_failed_tasks:
                raise TasksFailedError(self._quarantine_report())
        result = stage.finish(context)
        optional = {name for name, output in stage.outputs.items() if output.optional}
        missing = (set(stage.outputs) ^ set(result.outputs)) - optional
        if missing:
            raise TypeError(f"stage {stage.name}: finish() and outputs disagree about {', '.join(sorted(missing))}")
        self._raise_if_stopped()
        if self.attempt.cancel_requested():
            raise CancelledError("cancelled by its owner")
        self.attempt.publish(
            make_manifest(self.attempt, self.job.spec, stage, names, result, self.progress, self.quarantined)
        )
        log.info("job %s published", self.attempt.key)

    def _run_round(self, index: int, round_: Round) -> None:
        context = self.state.context
        journal = read_journal(self.store, self.attempt.key, round_.name)
        if self.options.retry_quarantined and any(e.quarantined for e in journal.values()):
            journal = {k: e for k, e in journal.items() if not e.quarantined}
            # Later rounds were carried out without these tasks if the job allowed it: they are done again. Forgotten
            # first, so that an attempt that dies in between leaves nothing that looks finished.
            for later in self.state.rounds[index + 1 :]:
                forget_journal(self.store, self.attempt.key, later.name)
        round_.prepare(context)
        total = cost = 0.0
        for task in round_.plan(context):
            total, cost = total + 1, cost + task.cost
            if task.key in journal:
                self.progress.resumed(task, journal[task.key])
        self.progress.tasks_total, self.progress.cost_total = int(total), cost
        self.quarantined += [f"{round_.name}/{k}" for k, e in journal.items() if e.quarantined]
        if total:
            log.info("round %s: %d tasks, %d done before", round_.name, total, len(journal))

        todo = (t for t in round_.plan(context) if t.key not in journal)
        deferred: list[Task] = []
        self._carry_out(index, round_, todo, deferred)
        self._carry_out_suspects(index, round_, deferred)

    def _carry_out_suspects(self, index: int, round_: Round, tasks: list[Task]) -> None:
        """Tasks that were under way when ranks died: few at a time, so that the guilty one shows."""
        at_a_time = self.suspects.at_a_time(len(tasks))
        trusted = []
        for task in tasks:
            if self.suspects.died_alone(round_.name, task.key):
                self._quarantine(round_, task, "the rank that ran it died, twice and alone (out of memory? a crash?)")
            else:
                trusted.append(task)
        if trusted:
            log.warning("%d tasks were under way when ranks died: run %d at a time", len(trusted), at_a_time)
        self.progress.caution = "alone" if at_a_time == 1 else "group"
        for start in range(0, len(trusted), at_a_time):
            self._carry_out(index, round_, iter(trusted[start : start + at_a_time]), None)
        self.progress.caution = "none"

    def _carry_out(self, index: int, round_: Round, tasks: Iterator[Task], deferred: list[Task] | None) -> None:
        """Keep the farm busy until `tasks` is exhausted. Suspects go to `deferred`, if given."""
        pending: dict[Future[Outcome], Task] = {}
        tries: dict[str, int] = {}
        again: list[Task] = []
        exhausted = False
        while True:
            while len(pending) < self.farm.window and not (exhausted and not again):
                self._raise_if_stopped(pending)
                task = again.pop() if again else next(tasks, None)
                if task is None:
                    exhausted = True
                    continue
                if deferred is not None and self.suspects.seen(round_.name, task.key):
                    deferred.append(task)
                    continue
                self.progress.in_flight.add(task.key)
                if self.suspects.careful or self.progress.caution != "none":
                    self.heartbeat.beat()  # so that the next attempt knows what was under way
                pending[self.farm.submit(execute, index, task)] = task
            if not pending:
                return
            done, _ = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
            self._raise_if_stopped(pending)
            for future in done:
                task = pending.pop(future)
                self.progress.in_flight.discard(task.key)
                if self._settle(round_, task, future.result(), tries):
                    again.append(task)

    def _settle(self, round_: Round, task: Task, outcome: Outcome, tries: dict[str, int]) -> bool:
        """Book an outcome; True if the task is to be tried again."""
        self.progress.tried(outcome, here=outcome.rank == self.state.rank)
        if outcome.status == "done":
            self._book(task, outcome)
            return False
        if outcome.status == "user":
            raise UserError(outcome.error)
        tries[task.key] = tries.get(task.key, 0) + 1
        log.warning(
            "task %s/%s, try %d: %s %s", round_.name, task.key, tries[task.key], outcome.error, outcome.detail
        )  # fmt: skip
        if outcome.status == "infrastructure":
            if tries[task.key] >= INFRASTRUCTURE_TRIES:
                raise StoreError(f"task {round_.name}/{task.key}: {outcome.error}")
            return True
        if tries[task.key] < TASK_TRIES:
            return True
        self._quarantine(round_, task, outcome.error, outcome.detail)
        return False

    def _book(self, task: Task, outcome: Outcome) -> None:
        seconds = round(outcome.seconds, 3)
        entry = Entry(task.key, outcome.data, outcome.voxels, outcome.bytes, seconds, outcome.rank)
        self.journal.add(self.progress.round, entry)
        self.progress.finished(task, outcome)

    def _quarantine(self, round_: Round, task: Task, error: str, detail: str = "") -> None:
        self.journal.add(round_.name, Entry(task.key, error=error, detail=detail))
        self.quarantined.append(f"{round_.name}/{task.key}")
        self.progress.quarantined += 1
        log.error("task %s/%s is quarantined: %s", round_.name, task.key, error)

    def _quarantine_report(self) -> str:
        first = self.quarantined[0]
        command = f"hpn-stage run {shlex.quote(job_uri(self.store, self.attempt.key))} --task {shlex.quote(first)}"
        return f"{len(self.quarantined)} tasks failed and are quarantined; the others are done. Reproduce: {command}"

    def _raise_if_stopped(self, pending: dict[Future[Outcome], Task] | None = None) -> None:
        """Raise what ends this attempt early, after running tasks had their chance to finish."""
        beat = self.heartbeat
        if (
            self.deadline is not None
            and time.monotonic() > self.deadline - self.progress.longest_task_s - WALLTIME_MARGIN_S
        ):
            beat.drain("the walltime ends")
        reason = beat.stop_reason
        if reason is None:
            return
        for future in list(pending or ()):
            if future.cancel():
                assert pending is not None
                pending.pop(future)
        if pending and isinstance(reason, DrainedError):
            done, _ = wait(pending, timeout=max(0.0, self.options.drain_grace_s - beat.stopping_for_s()))
            for future in done:
                task = pending.pop(future)
                outcome = future.result()
                self.progress.tried(outcome, here=outcome.rank == self.state.rank)
                if outcome.status == "done":
                    self._book(task, outcome)
        if pending:  # ranks are deep in tasks that nobody waits for: book, and leave without them
            state = EndState.DRAINED if isinstance(reason, DrainedError) else EndState.CANCELLED
            with contextlib.suppress(HappyError):
                if not isinstance(reason, SupersededError):
                    self._end(state, str(reason), 0)
            abort_all(EXIT_TRY_AGAIN if state is EndState.DRAINED else EXIT_FAILED)
        raise reason

    def _end(self, state: EndState, message: str, code: int, **details: object) -> int:
        log.log(logging.INFO if state is EndState.DRAINED else logging.ERROR, "%s: %s", state.value, message)
        self.progress.in_flight.clear()
        try:
            self.journal.flush()
            self.attempt.end(state, message, telemetry=self.progress.telemetry(), **details)
        except HappyError as error:
            log.error("%s", error)
            code = EXIT_TRY_AGAIN
        finally:
            self.logs.flush()
        return code

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT drain. Not from threads other than the main one (notebooks)."""

        def handle(number: int, _frame: object) -> None:
            self.heartbeat.drain(f"got {signal.Signals(number).name}", abandon_after_s=self.options.drain_grace_s + 2)

        try:
            before = {s: signal.signal(s, handle) for s in (signal.SIGTERM, signal.SIGINT)}
        except ValueError:
            yield
            return
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class TasksFailedError(HappyError):
    """More tasks are quarantined than the job allows."""
