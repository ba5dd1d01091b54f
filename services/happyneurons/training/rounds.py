"""The rounds of a training job: blocks of training and judging in turn, then the model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from happyneurons.errors import UserError
from happyneurons.jobs.stage import Context, Round, Task, TaskResult
from happyneurons.training.blocks import weights_of
from happyneurons.training.session import (
    TrainingSession,
    judge_round,
    mean_path,
    shard_path,
    train_round,
)

SessionType = type[TrainingSession[Any]]


class TrainBlock(Round):
    """Task: a shard. It trains a block of steps and leaves its state."""

    def __init__(self, session: SessionType, block: int) -> None:
        self._type, self._block = session, block
        self.name = train_round(block)  # type: ignore[misc]

    def prepare(self, context: Context[Any]) -> None:
        session = self._type.of(context)
        history, options = session.history, session.options
        if self._block == 1:
            session.check_examples()
        if history.wants(self._block):
            history.report()
            best = history.best()
            session.clear_checkpoints(options.last_step(self._block - 1), best["step"] if best else 0)

    def plan(self, context: Context[Any]) -> Iterable[Task]:
        session = self._type.of(context)
        if not session.history.wants(self._block):
            return
        steps = session.options.last_step(self._block) - session.options.last_step(self._block - 1)
        for shard in range(session.options.shards):
            yield Task(key=f"shard-{shard:04d}", payload={"shard": shard}, cost=float(steps))

    def run(self, task: Task, context: Context[Any]) -> TaskResult:
        session, shard = self._type.of(context), task.payload["shard"]
        trainer = session.trainer
        trainer.restore(session.state_after(self._block - 1))
        loss = session.run_block(self._block - 1, shard)
        step = session.options.last_step(self._block)
        session.store.put_arrays(shard_path(step, shard), **trainer.state())
        context.log.info("step %d of %d, shard %d: loss %.4f", step, session.options.steps, shard, loss)
        return TaskResult(data={"loss": loss})


class JudgeBlock(Round):
    """Task: some of the validation patches, by the mean of the shards. The first one writes that mean."""

    def __init__(self, session: SessionType, block: int) -> None:
        self._type, self._block = session, block
        self.name = judge_round(block)  # type: ignore[misc]

    def prepare(self, context: Context[Any]) -> None:
        if not self._block:
            self._type.of(context).check_examples()

    def plan(self, context: Context[Any]) -> Iterable[Task]:
        session = self._type.of(context)
        if self._block and not session.history.wants(self._block):
            return
        for part in range(session.options.shards):
            yield Task(key=f"part-{part:04d}", payload={"part": part}, cost=session.options.block_steps / 4)

    def run(self, task: Task, context: Context[Any]) -> TaskResult:
        session, part = self._type.of(context), task.payload["part"]
        state = session.mean_of_shards(self._block) if self._block else session.trainer.start
        step = session.options.last_step(self._block)
        if part == 0:
            session.store.put_arrays(mean_path(step), **state)
        session.trainer.restore(state)
        counts, samples = session.judge(part)
        if part == 0:
            session.store.put(f"samples/{step:08d}.png", samples())
        return TaskResult(data={"counts": counts})


class Export(Round):
    """One task: the state that was judged best becomes the model."""

    name = "export"

    def __init__(self, session: SessionType) -> None:
        self._type = session

    def prepare(self, context: Context[Any]) -> None:
        history = self._type.of(context).history
        if history.last_block() is not None:
            history.report()

    def plan(self, context: Context[Any]) -> Iterable[Task]:
        session = self._type.of(context)
        last, best = session.history.last_block(), session.history.best()
        if last is not None and best is not None:
            payload = {"best": best, "last_step": session.options.last_step(last)}
            yield Task(key=f"step-{int(best['step']):08d}", payload=payload)

    def run(self, task: Task, context: Context[Any]) -> TaskResult:
        session, params = self._type.of(context), context.params
        best, last_step = task.payload["best"], task.payload["last_step"]
        training: dict[str, Any] = {
            "figures": best,
            "last_step": last_step,
            "seed": params.seed,
            "batch_size": params.batch_size,
            "shards": params.shards,
            **session.facts(),
        }
        if session.voxel_size_nm_xyz is not None:
            training["voxel_size_nm_xyz"] = list(session.voxel_size_nm_xyz)
        session.save(weights_of(session.store.get_arrays(mean_path(int(best["step"])))), training)
        figures = {name: value for name, value in best.items() if name != "step"}
        data = {**figures, "step": float(last_step), "best_step": best["step"]}
        if session.judges_start:
            data[f"initial_{session.score}"] = session.history.rows(0)[0][session.score]
        return TaskResult(data=data)


def training_rounds(session: TrainingSession[Any]) -> list[Round]:
    """All rounds after those that look at the examples."""
    own = type(session)
    rounds: list[Round] = [JudgeBlock(own, 0)] if session.judges_start else []
    for block in range(1, session.options.blocks + 1):
        rounds += [TrainBlock(own, block), JudgeBlock(own, block)]
    return [*rounds, Export(own)]


def finish_training(session: TrainingSession[Any], scratch: str) -> dict[str, float]:
    """Metrics of the finished job; checkpoints and the folder `scratch` go. Raises UserError if there is no model."""
    results = [data for _, data in session.context.results(Export.name)]
    if not results:
        raise UserError(f"{session.stage}: training did not end; see the job's quarantined task")
    for folder in ("checkpoints", scratch):
        for path in list(session.store.list(folder)):
            session.store.delete(path)
    return {name: float(value) for name, value in results[0].items()}
