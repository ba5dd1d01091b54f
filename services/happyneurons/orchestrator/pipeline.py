"""Pipelines: YAML → a checked graph of jobs and gates. The format is described in docs/pipelines.md.

Checking reports every mistake at once, each with its line, and starts nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import ValidationError

from happyneurons.errors import UserError
from happyneurons.jobs.spec import Resources
from happyneurons.jobs.stage import parse_params
from happyneurons.orchestrator import yaml_source
from happyneurons.orchestrator.conditions import metric_names
from happyneurons.orchestrator.yaml_source import Source, Violation
from happyneurons.stages import load_stage

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,62}\Z")
REFERENCE = re.compile(r"([A-Za-z][A-Za-z0-9_-]*(?:\[[^\]]*\])?)\.([A-Za-z_][A-Za-z0-9_]*)\Z")
VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
TOP_FIELDS = {"name", "description", "parameters", "defaults", "jobs", "gates"}
JOB_FIELDS = {"stage", "inputs", "params", "resources", "site", "needs", "allow_failed_tasks", "sweep"}
GATE_FIELDS = {"after", "ask", "condition", "otherwise"}


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
class Pipeline:
    name: str
    description: str
    jobs: Mapping[str, PipelineJob]
    gates: Mapping[str, PipelineGate]
    order: tuple[str, ...]
    """Jobs and gates in an order in which each comes after what it needs."""


class PipelineError(UserError):
    """The pipeline has mistakes."""

    def __init__(self, source_name: str, found: Sequence[Violation]) -> None:
        self.found = list(found)
        lines = "; ".join(str(v) for v in found)
        super().__init__(f"{source_name or 'pipeline'}: {lines}", [(v.field, str(v)) for v in found])


def reference(text: str) -> re.Match[str] | None:
    """Match of `JOB.OUTPUT`; anything with a slash or a scheme is a URI."""
    return None if "/" in text else REFERENCE.match(text)


def parse_pipeline(
    text: str,
    parameters: Mapping[str, str] | None = None,
    *,
    source_name: str = "",
    base_uri: str = "",
    default_site: str = "local",
    sites: Sequence[str] | None = None,
) -> Pipeline:
    """Parse and check a pipeline. Raises PipelineError with every mistake found."""
    source = yaml_source.parse(text)
    reader = _Reader(source, parameters or {}, base_uri, default_site, sites)
    pipeline = None
    if not source.violations:
        pipeline = reader.read()
    if source.violations or pipeline is None:
        raise PipelineError(source_name, source.violations)
    return pipeline


class _Reader:
    def __init__(
        self,
        source: Source,
        parameters: Mapping[str, str],
        base_uri: str,
        default_site: str,
        sites: Sequence[str] | None,
    ) -> None:
        self.source, self.given, self.base_uri = source, parameters, base_uri
        self.default_site, self.sites = default_site, sites
        self.variables: dict[str, Any] = {}
        self.sweeps: dict[str, dict[str, list[Any]]] = {}

    def complain(self, path: tuple[str, ...], description: str) -> None:
        self.source.complain(path, description)

    def mapping(self, value: Any, path: tuple[str, ...], known: set[str] | None = None) -> dict[str, Any]:
        if value is None:
            return {}
        if not isinstance(value, dict):
            self.complain(path, "expected a mapping (name: value)")
            return {}
        for key in value:
            if known is not None and key not in known:
                self.complain((*path, key), f"no such field; there are {', '.join(sorted(known))}")
        return value

    def read(self) -> Pipeline | None:
        from happyneurons.orchestrator.sweeps import expand_sweeps

        top = self.mapping(self.source.value, (), TOP_FIELDS)
        if not top.get("jobs"):
            self.complain(("jobs",), "a pipeline needs at least one job")
            return None
        self._read_variables(self.mapping(top.get("parameters"), ("parameters",)))
        defaults = self.mapping(top.get("defaults"), ("defaults",), {"site", "resources"})
        jobs = {}
        for name, value in self.mapping(top["jobs"], ("jobs",)).items():
            job = self._read_job(name, self.mapping(value, ("jobs", name), JOB_FIELDS), defaults)
            if job is not None:
                jobs[name] = job
        gates = {}
        for name, value in self.mapping(top.get("gates"), ("gates",)).items():
            gate = self._read_gate(name, self.mapping(value, ("gates", name), GATE_FIELDS), jobs)
            if gate is not None:
                gates[name] = gate
        self._check_references(jobs, gates)
        order = self._order(jobs, gates)
        if self.source.violations:
            return None
        jobs, gates = expand_sweeps(jobs, gates, self.sweeps, order)
        name = str(top.get("name") or "pipeline")
        return Pipeline(name, str(top.get("description") or ""), jobs, gates, tuple(_sorted(jobs, gates) or ()))

    def _read_variables(self, declared: dict[str, Any]) -> None:
        self.variables = dict(declared)
        for name, text in self.given.items():
            if name not in declared:
                known = ", ".join(sorted(declared)) or "none"
                self.complain(("parameters", name), f"the pipeline has no such parameter; there are {known}")
                continue
            self.variables[name] = yaml_source.parse(text).value
        for name, value in self.variables.items():
            if value is None:
                self.complain(("parameters", name), f"needs a value: give it with --set {name}=VALUE")
        given = dict(self.variables)
        self.variables = {"here": self.base_uri.rstrip("/")}
        self.variables |= {name: self._substitute(value, ("parameters", name)) for name, value in given.items()}

    def _substitute(self, value: Any, path: tuple[str, ...]) -> Any:
        if isinstance(value, dict):
            return {k: self._substitute(v, (*path, k)) for k, v in value.items()}
        if isinstance(value, list):
            return [self._substitute(v, (*path, str(i))) for i, v in enumerate(value)]
        if not isinstance(value, str):
            return value
        for name in VARIABLE.findall(value):
            if name not in self.variables:
                self.complain(path, f"no parameter {name!r}; there are {', '.join(sorted(self.variables))}")
                return value
        whole = VARIABLE.fullmatch(value)
        if whole:
            return self.variables[whole[1]]
        return VARIABLE.sub(lambda m: str(self.variables[m[1]]), value)

    def _read_job(self, name: str, value: dict[str, Any], defaults: dict[str, Any]) -> PipelineJob | None:
        path = ("jobs", name)
        if not NAME.match(name):
            self.complain(path, "a job's name starts with a letter and has letters, digits, _ and - only")
            return None
        stage_name = value.get("stage", name)
        try:
            stage = load_stage(str(stage_name))
        except UserError as error:
            self.complain((*path, "stage"), str(error))
            return None
        params = self._substitute(self.mapping(value.get("params"), (*path, "params")), (*path, "params"))
        self._read_sweep(name, self.mapping(value.get("sweep"), (*path, "sweep")))
        trial = {**params, **{k: v[0] for k, v in self.sweeps.get(name, {}).items()}}
        try:
            parse_params(stage, trial)
        except UserError as error:
            for where, expected in error.violations:
                self.complain((*path, *where.split(".")), expected)
        inputs = {}
        for key, uris in self.mapping(value.get("inputs"), (*path, "inputs")).items():
            uris = self._substitute(uris, (*path, "inputs", key))
            inputs[key] = tuple(str(u) for u in uris) if isinstance(uris, list) else (str(uris),)
            if key not in stage.inputs:
                known = ", ".join(sorted(stage.inputs)) or "none"
                self.complain((*path, "inputs", key), f"no such input; {stage.name} has {known}")
            elif len(inputs[key]) > 1 and not stage.inputs[key].many:
                self.complain((*path, "inputs", key), "takes one artifact")
        for key, spec in stage.inputs.items():
            if not spec.optional and key not in inputs:
                kinds = " or ".join(spec.kinds)
                self.complain((*path, "inputs"), f"{key} is missing: give a {kinds} ({spec.description})")
        site = str(self._substitute(value.get("site", defaults.get("site", self.default_site)), (*path, "site")))
        if self.sites is not None and site not in self.sites:
            self.complain((*path, "site"), f"no site {site!r}; there are {', '.join(sorted(self.sites))}")
        allowed = value.get("allow_failed_tasks", 0)
        if not isinstance(allowed, int) or allowed < 0:
            self.complain((*path, "allow_failed_tasks"), "expected a number of tasks, 0 or more")
            allowed = 0
        return PipelineJob(
            name, stage.name, inputs, params, self._read_resources(path, value, defaults), site,
            self._names(value.get("needs"), (*path, "needs")), allowed,
        )  # fmt: skip

    def _read_resources(self, path: tuple[str, ...], value: dict[str, Any], defaults: dict[str, Any]) -> Resources:
        given = self.mapping(value.get("resources"), (*path, "resources"))
        merged = {**self.mapping(defaults.get("resources"), ("defaults", "resources")), **given}
        merged = self._substitute(merged, (*path, "resources"))
        try:
            return Resources.model_validate(merged)
        except ValidationError as error:
            for item in error.errors():
                known = f"no such field; there are {', '.join(Resources.model_fields)}"
                text = known if item["type"] == "extra_forbidden" else item["msg"]
                self.complain((*path, "resources", *(str(p) for p in item["loc"])), text)
            return Resources()

    def _read_sweep(self, name: str, value: dict[str, Any]) -> None:
        for key, values in value.items():
            path = ("jobs", name, "sweep", key)
            values = self._substitute(values, path)
            if not isinstance(values, list) or not values:
                self.complain(path, "expected a list of values")
                continue
            self.sweeps.setdefault(name, {})[key] = values

    def _read_gate(self, name: str, value: dict[str, Any], jobs: Mapping[str, PipelineJob]) -> PipelineGate | None:
        path = ("gates", name)
        if not NAME.match(name) or name in jobs:
            self.complain(path, "a gate's name starts with a letter, and is no job's name")
            return None
        after = self._names(value.get("after"), (*path, "after"))
        condition, ask = str(value.get("condition") or ""), str(value.get("ask") or "")
        if condition:
            try:
                named = [job for job, _ in metric_names(condition)]
            except UserError as error:
                self.complain((*path, "condition"), str(error))
                return None
            for job in named:
                if job not in jobs:
                    self.complain((*path, "condition"), f"no job {job!r}")
            after = tuple(dict.fromkeys([*after, *named]))
        if not after:
            self.complain(path, "needs `after: [JOB, …]`, or a condition on a job's metrics")
        if not condition and not ask:
            self.complain(path, "needs `ask: TEXT` (what a person has to judge) or `condition: …`")
        otherwise = value.get("otherwise", "ask")
        if otherwise not in ("ask", "reject"):
            self.complain((*path, "otherwise"), "expected ask or reject")
            otherwise = "ask"
        return PipelineGate(name, after, ask, condition, otherwise)

    def _names(self, value: Any, path: tuple[str, ...]) -> tuple[str, ...]:
        if value is None:
            return ()
        items = value if isinstance(value, list) else [value]
        if not all(isinstance(item, str) for item in items):
            self.complain(path, "expected names of jobs or gates")
            return ()
        return tuple(items)

    def _check_references(self, jobs: Mapping[str, PipelineJob], gates: Mapping[str, PipelineGate]) -> None:
        for job in jobs.values():
            spec = load_stage(job.stage).inputs
            for name, other, output in job.references():
                path = ("jobs", job.name, "inputs", name)
                if other not in jobs:
                    self.complain(path, f"no job {other!r}")
                    continue
                outputs = load_stage(jobs[other].stage).outputs
                if output not in outputs:
                    self.complain(path, f"{other} has no output {output!r}; there are {', '.join(sorted(outputs))}")
                elif name in spec and outputs[output].kind not in spec[name].kinds:
                    expected = " or ".join(spec[name].kinds)
                    self.complain(path, f"expected a {expected}; {other}.{output} is a {outputs[output].kind}")
            for need in job.needs:
                if need not in jobs and need not in gates:
                    self.complain(("jobs", job.name, "needs"), f"no job or gate {need!r}")
        for gate in gates.values():
            for need in gate.after:
                if need not in jobs:
                    self.complain(("gates", gate.name, "after"), f"no job {need!r}")

    def _order(self, jobs: Mapping[str, PipelineJob], gates: Mapping[str, PipelineGate]) -> list[str]:
        order = _sorted(jobs, gates)
        if order is None:
            cycle = _find_cycle(jobs, gates)
            kind = "jobs" if cycle[0] in jobs else "gates"
            self.complain((kind, cycle[0]), f"needs itself: {' → '.join([*cycle, cycle[0]])}")
            return []
        return order


def _upstream(jobs: Mapping[str, PipelineJob], gates: Mapping[str, PipelineGate], name: str) -> list[str]:
    needs = jobs[name].upstream() if name in jobs else gates[name].after
    return [n for n in needs if n in jobs or n in gates]


def _sorted(jobs: Mapping[str, PipelineJob], gates: Mapping[str, PipelineGate]) -> list[str] | None:
    """Topological order, in the order of the text where it leaves a choice; None with a cycle."""
    left, done = [*jobs, *gates], []
    while left:
        ready = next((n for n in left if all(u in done for u in _upstream(jobs, gates, n))), None)
        if ready is None:
            return None
        left.remove(ready)
        done.append(ready)
    return done


def _find_cycle(jobs: Mapping[str, PipelineJob], gates: Mapping[str, PipelineGate]) -> list[str]:
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
