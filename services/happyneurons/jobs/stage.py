"""The stage contract: what a stage is, and what it may use.

A stage is one folder under `stages/`: `stage.py` holds the class, backends are files beside it.
`stage.py` is imported to list and describe stages, so it imports light things only; heavy
libraries are imported inside `plan`, `run` and `finish`.

Example::

    class InvertParams(StageParams):
        maximum: int = Field(255, ge=1, le=255, description="Grey value that becomes 0")

    class InvertSections(Round):
        name = "sections"

        def plan(self, context):
            for z in range(*context.input("stack").z_range):
                yield Task(key=f"{z:06d}", payload={"z": z})

        def run(self, task, context):
            ...
            return TaskResult(data={"mean": 3.0}, voxels=n)

    class Invert(Stage[InvertParams]):
        name, version, summary = "invert", "1", "Inverts grey values"
        Params = InvertParams
        inputs = {"stack": InputSpec("section_stack", "sections to invert")}
        outputs = {"stack": OutputSpec("section_stack", "inverted sections")}

        def rounds(self, context):
            return [InvertSections()]

        def finish(self, context):
            return StageResult(outputs={"stack": Output("section_stack", …)}, metrics={…})
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict

from happyneurons.errors import UserError
from happyneurons.store.artifacts import Artifact, ArtifactKind, Bounds
from happyneurons.store.documents import Store


class StageParams(BaseModel):
    """Base of every stage's parameters. Unknown names are refused.

    Each field has a description, a range where one makes sense, and its unit in its name or
    description.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)


P = TypeVar("P", bound=StageParams)


@dataclass(frozen=True)
class InputSpec:
    """An input's kind(s) and meaning. `many`: a list of artifacts is taken."""

    kind: ArtifactKind | tuple[ArtifactKind, ...]
    description: str
    optional: bool = False
    many: bool = False

    @property
    def kinds(self) -> tuple[ArtifactKind, ...]:
        return self.kind if isinstance(self.kind, tuple) else (self.kind,)


@dataclass(frozen=True)
class OutputSpec:
    """An output's kind and meaning. `optional`: depending on the job there is none."""

    kind: ArtifactKind
    description: str
    optional: bool = False


@dataclass(frozen=True)
class Task:
    """What one rank does in one go: a section, a section pair, a subvolume, a chunk.

    key: stable and unique within its round, made of [A-Za-z0-9_.-]; it must carry the geometry
        (two plans that differ must not share keys for different work; everything else that
        changes the work is part of the job's key).
    payload: small and JSON-able; what `run` needs besides the context.
    cost: relative work, for the ETA.
    """

    key: str
    payload: Mapping[str, Any] = field(default_factory=dict)
    cost: float = 1.0


@dataclass(frozen=True)
class TaskResult:
    """What a task leaves in the journal. `data` is small, JSON-able and deterministic."""

    data: Mapping[str, Any] = field(default_factory=dict)
    voxels: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class Output:
    """What `finish` says of one output; its bytes lie under `context.output_uri(name)`."""

    kind: ArtifactKind
    voxel_size_nm_xyz: tuple[float, float, float] | None = None
    bounds: Bounds | None = None
    properties: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StageResult:
    outputs: Mapping[str, Output]
    metrics: Mapping[str, float] = field(default_factory=dict)


class Context(Protocol[P]):
    """What a stage sees of its job. The same on every rank."""

    store: Store
    job_key: str
    params: P
    inputs: Mapping[str, Sequence[Artifact]]
    threads: int
    """Threads a task may use."""
    scratch: Path
    """Node-local folder of this rank, removed afterwards."""
    log: logging.Logger

    def input(self, name: str) -> Artifact:
        """The single artifact of an input."""

    def optional_input(self, name: str) -> Artifact | None: ...

    def output_uri(self, output: str) -> str:
        """Absolute URI of the folder an output is written under."""

    def output_store(self, output: str) -> Store:
        """That folder as a store of documents."""

    def results(self, round_name: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """`(task key, data)` of a finished earlier round in key order, without quarantined tasks."""

    def quarantined(self, round_name: str) -> Sequence[str]:
        """Keys of tasks of that round that were given up."""

    def stopping(self) -> bool:
        """Whether the attempt is to end soon (signal, walltime). Cheap; for tasks of many minutes.

        A task that can save its state does so and raises DrainedError; it has about 20 s. It is not
        counted as a failure, and the next attempt begins it again.
        """

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """`make()` once per process and job: networks, opened volumes, solved transforms."""


class Round(ABC):
    """Tasks that do not depend on each other. Rounds follow one another with a barrier between."""

    name: ClassVar[str]

    def prepare(self, context: Context[Any]) -> None:
        """Rank 0, before `plan`, once an attempt: create volumes. Must be idempotent."""
        return

    @abstractmethod
    def plan(self, context: Context[Any]) -> Iterable[Task]:
        """Rank 0: the tasks, lazily, in a deterministic order."""

    @abstractmethod
    def run(self, task: Task, context: Context[Any]) -> TaskResult:
        """Any rank, perhaps more than once: idempotent, deterministic bytes, own region only.

        Raises TaskError (this task cannot be done), UserError (the whole job is wrong); anything
        else counts as a failure of the task and is tried once more.
        """


class Stage(ABC, Generic[P]):
    """A named operation. Instances carry no state."""

    name: ClassVar[str]
    version: ClassVar[str]
    """Raised whenever the bytes of a result change: it is part of the job's key."""
    summary: ClassVar[str]
    Params: ClassVar[type[StageParams]]
    inputs: ClassVar[Mapping[str, InputSpec]]
    outputs: ClassVar[Mapping[str, OutputSpec]]

    def fingerprint(self, params: P) -> str | None:
        """Identity of what the job reads outside the store (a folder's listing); part of its key."""
        return None

    def check(self, context: Context[P]) -> None:
        """Rank 0, before any work: raise UserError if parameters and inputs do not fit."""
        return

    @abstractmethod
    def rounds(self, context: Context[P]) -> Sequence[Round]: ...

    @abstractmethod
    def finish(self, context: Context[P]) -> StageResult:
        """Rank 0, after the last round. Writes nothing that `rounds` could have written."""


def parse_params(stage: type[Stage[Any]], values: Mapping[str, Any]) -> StageParams:
    """Validated parameters with defaults. Raises UserError naming each wrong field."""
    from pydantic import ValidationError

    try:
        return stage.Params.model_validate(dict(values))
    except ValidationError as error:
        violations = []
        for item in error.errors():
            path = ".".join(["params", *(str(p) for p in item["loc"])])
            expected = item["msg"]
            if item["type"] == "extra_forbidden":
                expected = f"no such parameter; {stage.name} has {', '.join(sorted(stage.Params.model_fields))}"
            violations.append((path, expected))
        text = "; ".join(f"{path}: {expected}" for path, expected in violations)
        raise UserError(f"stage {stage.name}: {text}", violations) from None
