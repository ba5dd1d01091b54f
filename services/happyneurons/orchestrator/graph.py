"""The graph of a pipeline: jobs, gates, and the order in which they follow one another."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from happyneurons.jobs.spec import Resources

REFERENCE = re.compile(r"([A-Za-z][A-Za-z0-9_-]*(?:\[[^\]]*\])?)\.([A-Za-z_][A-Za-z0-9_]*)\Z")


@dataclass(frozen=True)
class PipelineJob:
    """A job of the graph. `inputs` hold URIs and references `JOB.OUTPUT`."""

    name: str
    stage: str
    inputs: Mapping[str, tuple[str, ...]]
    params: Mapping[str, Any]
    resources: Resources = field(default_factory=Resources)
    site: str = "local"
    needs: tuple[str, ...] = ()
    """Gates and jobs that must be through, besides those whose outputs are inputs."""
    allow_failed_tasks: int = 0
    each: bool = False
    """It is made anew for each batch of sections; in `Pipeline.templates` it is the pattern for that."""

    def references(self) -> list[tuple[str, str, str]]:
        """`(input, job, output)` of inputs that other jobs make."""
        found = []
        for name, uris in self.inputs.items():
            found += [(name, m[1], m[2]) for uri in uris if (m := reference(uri))]
        return found

    def upstream(self) -> tuple[str, ...]:
        """Names of all jobs and gates that must be through before this one starts."""
        return tuple(dict.fromkeys([*(job for _, job, _ in self.references()), *self.needs]))


@dataclass(frozen=True)
class PipelineGate:
    """A decision. With a condition the metrics decide; `otherwise` says what if it does not hold."""

    name: str
    after: tuple[str, ...]
    ask: str = ""
    condition: str = ""
    otherwise: Literal["ask", "reject"] = "ask"


@dataclass(frozen=True)
class Acquisition:
    """How an open run puts the sections that it is told of into batches."""

    batch: int
    """Sections of a full batch."""
    wait_s: float
    """A batch that is not full is closed this long after its first section arrived."""


@dataclass(frozen=True)
class Pipeline:
    """A checked pipeline. That of an open run grows; see :mod:`happyneurons.orchestrator.batches`."""

    name: str
    description: str
    jobs: Mapping[str, PipelineJob]
    gates: Mapping[str, PipelineGate]
    order: tuple[str, ...]
    """Jobs and gates in an order in which each comes after what it needs."""
    acquisition: Acquisition | None = None
    """Set: a run of it is open, it takes sections while it goes on."""
    templates: Mapping[str, PipelineJob] = field(default_factory=dict)
    """Jobs with `each: batch`, in an order in which each comes after what it needs; not among `jobs`."""
    late: frozenset[str] = frozenset()
    """Jobs and gates that wait for all batches, directly or through others."""


def reference(text: str) -> re.Match[str] | None:
    """Match of `JOB.OUTPUT`; anything with a slash or a scheme is a URI."""
    return None if "/" in text else REFERENCE.match(text)


def in_order(jobs: Mapping[str, PipelineJob], gates: Mapping[str, PipelineGate]) -> list[str] | None:
    """Topological order, in the order of the text where it leaves a choice; None with a cycle."""
    left, done = [*jobs, *gates], []
    while left:
        ready = next((n for n in left if all(u in done for u in _upstream(jobs, gates, n))), None)
        if ready is None:
            return None
        left.remove(ready)
        done.append(ready)
    return done


def find_cycle(jobs: Mapping[str, PipelineJob], gates: Mapping[str, PipelineGate]) -> list[str]:
    """Names along one cycle; there must be one."""
    for start in [*jobs, *gates]:
        trail = [start]
        stack = [iter(_upstream(jobs, gates, start))]
        while stack:
            step = next(stack[-1], None)
            if step is None:
                stack.pop()
                trail.pop()
            elif step == start:
                return trail[::-1]
            elif step not in trail:
                trail.append(step)
                stack.append(iter(_upstream(jobs, gates, step)))
    raise AssertionError("no cycle")


def _upstream(jobs: Mapping[str, PipelineJob], gates: Mapping[str, PipelineGate], name: str) -> list[str]:
    needs = jobs[name].upstream() if name in jobs else gates[name].after
    return [n for n in needs if n in jobs or n in gates]
