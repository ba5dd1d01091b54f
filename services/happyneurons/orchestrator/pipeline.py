"""Pipelines: YAML → a checked graph of jobs and gates. The format is described in docs/pipelines.md.

Checking reports every mistake at once, each with its line, and starts nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from happyneurons.errors import UserError
from happyneurons.jobs.spec import Resources
from happyneurons.jobs.stage import parse_params
from happyneurons.orchestrator import yaml_source
from happyneurons.orchestrator.batches import BATCH, check_each, read_acquisition, split_templates
from happyneurons.orchestrator.conditions import metric_names
from happyneurons.orchestrator.graph import Pipeline, PipelineGate, PipelineJob, find_cycle, in_order
from happyneurons.orchestrator.sweeps import TooManyJobsError, expand_sweeps
from happyneurons.orchestrator.yaml_source import Source, Violation
from happyneurons.stages import load_stage

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,62}\Z")
VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
TOP_FIELDS = {"name", "description", "parameters", "defaults", "acquisition", "jobs", "gates"}
JOB_FIELDS = {"stage", "each", "inputs", "params", "resources", "site", "needs", "allow_failed_tasks", "sweep"}
GATE_FIELDS = {"after", "ask", "condition", "otherwise"}
MOST_JOBS = 100_000
MOST_EXPANDED = 64 << 20
"""Characters that all ${…} of a pipeline may stand for together."""


class PipelineError(UserError):
    """The pipeline has mistakes."""

    def __init__(self, source_name: str, found: Sequence[Violation]) -> None:
        self.found = list(found)
        lines = "; ".join(str(v) for v in found)
        super().__init__(f"{source_name or 'pipeline'}: {lines}", [(v.field, str(v)) for v in found])


def parse_pipeline(
    text: str,
    parameters: Mapping[str, str] | None = None,
    *,
    source_name: str = "",
    base_uri: str = "",
    default_site: str = "local",
    sites: Sequence[str] | None = None,
    most_jobs: int = MOST_JOBS,
    source: Source | None = None,
) -> Pipeline:
    """Parse and check a pipeline. Raises PipelineError with every mistake found.

    source: the text as `yaml_source.parse` read it, for one who has more to say of its places.
    """
    source = source or yaml_source.parse(text)
    reader = _Reader(source, parameters or {}, base_uri, default_site, sites, most_jobs)
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
        most_jobs: int,
    ) -> None:
        self.source, self.given, self.base_uri = source, parameters, base_uri
        self.default_site, self.sites, self.most_jobs = default_site, sites, most_jobs
        self.expanded = 0
        self.variables: dict[str, Any] = {}
        self.own: dict[str, Any] = {}
        """Variables of the job that is being read."""
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
        self.own = {}
        gates = {}
        for name, value in self.mapping(top.get("gates"), ("gates",)).items():
            gate = self._read_gate(name, self.mapping(value, ("gates", name), GATE_FIELDS), jobs)
            if gate is not None:
                gates[name] = gate
        self._check_references(jobs, gates)
        order = self._order(jobs, gates)
        acquisition = read_acquisition(top, self._substitute(top.get("acquisition"), ("acquisition",)), self.complain)
        check_each(jobs, gates, self.sweeps, acquisition, self.complain)
        if self.source.violations:
            return None
        try:
            jobs, gates = expand_sweeps(jobs, gates, self.sweeps, order, self.most_jobs)
        except TooManyJobsError as error:
            place = ("jobs", error.job, "sweep") if error.job in self.sweeps else ("jobs", error.job)
            self.complain(place, f"expected at most {error.most} jobs in a pipeline, its sweeps written out")
            return None
        name, description = str(top.get("name") or "pipeline"), str(top.get("description") or "")
        order = in_order(jobs, gates) or []
        return split_templates(Pipeline(name, description, jobs, gates, tuple(order), acquisition))

    def _read_variables(self, declared: dict[str, Any]) -> None:
        self.variables = dict(declared)
        for name, text in self.given.items():
            if name not in declared:
                known = ", ".join(sorted(declared)) or "none"
                self.complain(("parameters", name), f"the pipeline has no such parameter; there are {known}")
                continue
            self.variables[name] = yaml_source.parse(text).value
        if BATCH in declared and "acquisition" in self.source.value:
            self.complain(
                ("parameters", BATCH), "this name is taken: ${batch} is the batch of a job with `each: batch`"
            )
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
        known = {**self.variables, **self.own}
        for name in VARIABLE.findall(value):
            if name not in known:
                only = "${batch} is only known in jobs with `each: batch`"
                there = f"no parameter {name!r}; there are {', '.join(sorted(known))}"
                self.complain(path, only if name == BATCH else there)
                return value
        self.expanded += sum(len(str(known[name])) for name in VARIABLE.findall(value))
        if self.expanded > MOST_EXPANDED:
            self.complain(path, f"expected ${{…}} to stand for at most {MOST_EXPANDED >> 20} MiB in all")
            return ""
        whole = VARIABLE.fullmatch(value)
        if whole:
            return known[whole[1]]
        return VARIABLE.sub(lambda m: str(known[m[1]]), value)

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
        each = value.get("each")
        if each not in (None, BATCH):
            self.complain((*path, "each"), "expected batch: one job for each batch of sections")
        self.own = {BATCH: f"${{{BATCH}}}"} if each == BATCH else {}  # stays in the text until there is a batch
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
            self._names(value.get("needs"), (*path, "needs")), allowed, each == BATCH,
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
        order = in_order(jobs, gates)
        if order is None:
            cycle = find_cycle(jobs, gates)
            kind = "jobs" if cycle[0] in jobs else "gates"
            self.complain((kind, cycle[0]), f"needs itself: {' → '.join([*cycle, cycle[0]])}")
            return []
        return order
