"""A stage whose tasks behave as a test wants: installed as a plug-in, the way others add stages.

Task i writes `i.txt` and waits or misbehaves as `behaviour[str(i)]` says:
"block"    until the file `release` exists in the folder `control` (so tests need no sleeps)
"fail"     raises ValueError
"broken"   raises ValueError until `control/mended` exists
"user"     raises UserError
"die"      kills its process with SIGKILL
"die-once" kills its process unless `control/died-i` exists
"nospace"  raises OSError(ENOSPC) until `control/space` exists
"ask"      as "block", but gives up with DrainedError when the attempt is to end, having left `control/gave-up-i`
"""

from __future__ import annotations

import errno
import os
import signal
import time
from pathlib import Path

from pydantic import Field

from happyneurons.errors import DrainedError, UserError
from happyneurons.jobs.stage import (
    InputSpec,
    Output,
    OutputSpec,
    Round,
    Stage,
    StageParams,
    StageResult,
    Task,
    TaskResult,
)
from happyneurons.store.documents import Store


class SandboxParams(StageParams):
    tasks: int = Field(10, ge=0, description="Number of tasks")
    control: str = Field("", description="Folder through which the test talks to tasks")
    behaviour: dict[str, str] = Field(default_factory=dict, description="What task i does")


class Work(Round):
    name = "work"

    def plan(self, context):
        for i in range(context.params.tasks):
            yield Task(f"{i:04d}", {"i": i})

    def run(self, task, context):
        i = task.payload["i"]
        control = Path(context.params.control)
        behaviour = context.params.behaviour.get(str(i), "")
        if context.params.control:
            (control / f"started-{i}-{os.getpid()}").touch()
        if behaviour == "fail":
            raise ValueError(f"task {i} is poison")
        if behaviour == "broken" and not (control / "mended").exists():
            raise ValueError(f"task {i} is broken")
        if behaviour == "user":
            raise UserError("the input is wrong")
        if behaviour == "die" or (behaviour == "die-once" and not (control / f"died-{i}").exists()):
            (control / f"died-{i}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if behaviour == "nospace" and not (control / "space").exists():
            raise OSError(errno.ENOSPC, "no space left on device")
        while behaviour == "block" and not (control / "release").exists():
            time.sleep(0.02)
        while behaviour == "ask" and not (control / "release").exists():
            if context.stopping():
                (control / f"gave-up-{i}").touch()
                raise DrainedError("asked to stop")
            time.sleep(0.02)
        context.output_store("numbers").put(f"{i}.txt", str(i * i).encode())
        return TaskResult({"square": i * i}, voxels=1)


class Sum(Round):
    name = "sum"

    def plan(self, context):
        yield Task("sum")

    def run(self, task, context):
        total = sum(data["square"] for _, data in context.results("work"))
        context.output_store("numbers").put_json("table.json", {"columns": ["sum"], "rows": [[total]]})
        return TaskResult({"sum": total})


class Sandbox(Stage[SandboxParams]):
    name, version, summary = "sandbox", "1", "Squares numbers (for tests)"
    Params = SandboxParams
    inputs = {}
    outputs = {"numbers": OutputSpec("table", "the sum of squares")}

    def rounds(self, context):
        return [Work(), Sum()]

    def finish(self, context):
        ((_, data),) = context.results("sum")
        return StageResult({"numbers": Output("table")}, {"sum": data["sum"]})


class GatherParams(StageParams):
    source: str = Field("", description="URI of a batch document")
    poison: str = Field("", description="While this file is there, the task fails")


class GatherRows(Round):
    name = "rows"

    def plan(self, context):
        yield Task("rows")

    def run(self, task, context):
        if context.params.poison and Path(context.params.poison).exists():
            raise ValueError("poisoned")
        rows = []
        if context.params.source:
            folder, name = context.params.source.rsplit("/", 1)
            rows = [[s["z"], s["version"]] for s in Store(folder).get_json(name)["sections"]]
        for artifact in context.inputs.get("tables", ()):
            rows += artifact.store().get_json("table.json")["rows"]
        context.output_store("table").put_json("table.json", {"columns": ["z", "version"], "rows": rows})
        return TaskResult({"rows": len(rows)})


class Gather(Stage[GatherParams]):
    """The sections of a batch, then the rows of its inputs, in their order."""

    name, version, summary = "gather", "1", "Joins tables (for tests)"
    Params = GatherParams
    inputs = {"tables": InputSpec("table", "tables to join", optional=True, many=True)}
    outputs = {"table": OutputSpec("table", "all rows")}

    def rounds(self, context):
        return [GatherRows()]

    def finish(self, context):
        ((_, data),) = context.results("rows")
        return StageResult({"table": Output("table")}, {"rows": data["rows"]})
