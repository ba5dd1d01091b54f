"""Pipelines built in Python: each stage is a method with its inputs and parameters.

::

    p = Pipeline("fib25")
    tiles = p.ingest(source="/data/tiles")
    montage = p.montage(tiles=tiles.tiles, job_name="mosaic", resources={"ranks": 4})
    p.gate("look", after=[montage], ask="Are the seams closed?")
    align = p.align(stack=montage.stack, needs=["look"])
    run = p.run(hpn.connect("127.0.0.1:50051"))
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from happyneurons.errors import UserError

if TYPE_CHECKING:
    from happyneurons.client.client import Client
    from happyneurons.client.runs import Run

JOB_OPTIONS = ("job_name", "each", "resources", "site", "needs", "allow_failed_tasks", "sweep")


class OutputRef(str):
    """`JOB.OUTPUT`: an output that does not exist yet."""

    __slots__ = ()


class JobRef:
    """A job of a pipeline under construction. Its outputs are attributes."""

    def __init__(self, name: str, outputs: Sequence[str]) -> None:
        self.name, self._outputs = name, tuple(outputs)

    def __repr__(self) -> str:
        return f"<job {self.name}: {', '.join(self._outputs)}>"

    def __dir__(self) -> list[str]:
        return ["name", *self._outputs]

    def __getitem__(self, output: str) -> OutputRef:
        if output not in self._outputs:
            raise UserError(f"job {self.name}: no output {output!r}; there are {', '.join(self._outputs)}")
        return OutputRef(f"{self.name}.{output}")

    def __getattr__(self, output: str) -> OutputRef:
        if output.startswith("_"):
            raise AttributeError(output)
        try:
            return self[output]
        except UserError as error:
            raise AttributeError(str(error)) from None


class _StageNames:
    """What of a stage a pipeline's text needs: names of inputs, parameters and outputs."""

    def __init__(self, inputs: Sequence[str], params: Sequence[str], outputs: Sequence[str], doc: str) -> None:
        self.inputs, self.params, self.outputs, self.doc = tuple(inputs), tuple(params), tuple(outputs), doc


class Pipeline:
    """A pipeline under construction. Mistakes that only the whole shows are found by `validate` and `run`.

    client: where to ask which stages there are; by default those of this installation count.
    """

    def __init__(self, name: str = "pipeline", description: str = "", *, client: Client | None = None) -> None:
        self.name, self.description = name, description
        self._client = client
        self._stages: dict[str, _StageNames] = {}
        self._jobs: dict[str, dict[str, Any]] = {}
        self._gates: dict[str, dict[str, Any]] = {}
        self._acquisition: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Callable[..., JobRef]:
        if name.startswith("_"):
            raise AttributeError(name)
        stage = name.replace("_", "-")
        try:
            known = self._describe(stage)
        except UserError as error:
            raise AttributeError(str(error)) from None

        def add(**values: Any) -> JobRef:
            return self.job(stage, **values)

        add.__name__, add.__doc__ = name, known.doc
        return add

    def __dir__(self) -> list[str]:
        from happyneurons.stages import stage_names

        return [*super().__dir__(), *(name.replace("-", "_") for name in stage_names())]

    def job(
        self,
        stage: str,
        *,
        job_name: str = "",
        each: str = "",
        resources: Mapping[str, Any] | None = None,
        site: str = "",
        needs: Sequence[str | JobRef] = (),
        allow_failed_tasks: int = 0,
        sweep: Mapping[str, Sequence[Any]] | None = None,
        **values: Any,
    ) -> JobRef:
        """Add a job of a stage. values: its inputs (outputs of other jobs, URIs, lists of them) and parameters.

        job_name: default the stage's name, numbered if it is taken. each: "batch" for one job for each batch
        of sections, see `acquisition`. Raises UserError for unknown names.
        """
        known = self._describe(stage)
        unknown = sorted(set(values) - set(known.inputs) - set(known.params))
        if unknown:
            names = ", ".join([*known.inputs, *known.params])
            raise UserError(f"stage {stage}: no input or parameter {unknown[0]!r}; there are {names}")
        name = job_name or self._free_name(stage)
        if name in self._jobs or name in self._gates:
            raise UserError(f"pipeline {self.name}: there is a {name!r} already")
        entry = {
            "stage": stage,
            "each": each,
            "inputs": {k: _plain(v) for k, v in values.items() if k in known.inputs and v is not None},
            "params": {k: _plain(v) for k, v in values.items() if k in known.params},
            "resources": _plain(dict(resources or {})),
            "site": site,
            "needs": _names(needs),
            "allow_failed_tasks": allow_failed_tasks,
            "sweep": _plain(dict(sweep or {})),
        }
        self._jobs[name] = {key: value for key, value in entry.items() if value}
        return JobRef(name, known.outputs)

    def acquisition(self, batch: int = 1, wait_s: float = 60.0) -> None:
        """Make its runs open ones: they take sections while they go on, in batches of so many.

        wait_s: how long a batch that is not full waits for more.
        """
        self._acquisition = {"batch": batch, "wait_s": wait_s}

    def gate(
        self, name: str, *, after: Sequence[str | JobRef] = (), ask: str = "", condition: str = "", otherwise: str = ""
    ) -> str:
        """Add a gate; returns its name, for `needs` of jobs. See docs/pipelines.md for conditions."""
        if name in self._jobs or name in self._gates:
            raise UserError(f"pipeline {self.name}: there is a {name!r} already")
        entry = {"after": _names(after), "ask": ask, "condition": condition, "otherwise": otherwise}
        self._gates[name] = {key: value for key, value in entry.items() if value}
        return name

    def to_yaml(self) -> str:
        """The pipeline's text, as `hpn run` takes it."""
        document = {
            "name": self.name, "description": self.description, "acquisition": self._acquisition,
            "jobs": self._jobs, "gates": self._gates,
        }  # fmt: skip
        text: str = yaml.safe_dump({k: v for k, v in document.items() if v}, sort_keys=False, allow_unicode=True)
        return text

    def run(self, client: Client, **options: Any) -> Run:
        """Submit it; options as those of `Client.submit`. Raises UserError with every mistake."""
        return client.submit(self, **options)

    def _describe(self, stage: str) -> _StageNames:
        if stage not in self._stages:
            self._stages[stage] = _from_server(self._client, stage) if self._client else _installed(stage)
        return self._stages[stage]

    def _free_name(self, stage: str) -> str:
        name, number = stage, 1
        while name in self._jobs or name in self._gates:
            number += 1
            name = f"{stage}-{number}"
        return name


def _installed(name: str) -> _StageNames:
    try:
        from happyneurons.stages import load_stage
    except ModuleNotFoundError:
        raise UserError("no stages are installed here: say where to ask for them, Pipeline(…, client=client)") from None
    stage = load_stage(name)
    return _StageNames(list(stage.inputs), list(stage.Params.model_fields), list(stage.outputs), stage.summary)


def _from_server(client: Client, name: str) -> _StageNames:
    from happyneurons.errors import NotFoundError

    try:
        stage = client.describe_stage(name)
    except NotFoundError as error:
        raise UserError(str(error)) from None
    params = json.loads(stage.params_json_schema).get("properties", {})
    return _StageNames([i.name for i in stage.inputs], list(params), [o.name for o in stage.outputs], stage.summary)


def _names(values: Sequence[str | JobRef]) -> list[str]:
    items = [values] if isinstance(values, (str, JobRef)) else values
    return [item.name if isinstance(item, JobRef) else item for item in items]


def _plain(value: Any) -> Any:
    """A value as YAML's safe subset has it."""
    if isinstance(value, JobRef):
        raise UserError(f"job {value.name} is no artifact: name one of its outputs, {value!r}")
    if isinstance(value, (str, Path)):
        return str(value)
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value.item() if hasattr(value, "item") else value  # numpy's numbers
