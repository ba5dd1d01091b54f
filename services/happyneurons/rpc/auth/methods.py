"""The role that each method needs. What is not in this table is refused."""

from __future__ import annotations

from dataclasses import dataclass

from happyneurons.rpc.auth.principal import Role


@dataclass(frozen=True)
class Rule:
    """What a method asks of its caller."""

    role: Role | None
    """None: nothing at all."""
    audited: bool = False
    """It decides or changes something: a line in the audit log for each call."""
    everything: bool = False
    """It is about jobs, which belong to no project: only for callers that have all projects."""


_LOOK = Rule(Role.VIEWER)
_TRY = Rule(Role.OPERATOR)
_DECIDE = Rule(Role.OPERATOR, audited=True)

METHODS: dict[str, dict[str, Rule]] = {
    "happyneurons.v1.PipelineService": {
        "ValidatePipeline": _TRY,  # the server opens what the pipeline names
        "SubmitRun": _DECIDE,
        "GetRun": _LOOK,
        "ListRuns": _LOOK,
        "WatchRun": _LOOK,
        "CancelRun": _DECIDE,
        "RetryRun": _DECIDE,
        "DecideGate": _DECIDE,
        "ExplainJob": _LOOK,
        "TailJobLogs": _LOOK,
        "ListStages": _LOOK,
        "DescribeStage": _LOOK,
        "ListSites": _LOOK,
    },
    "happyneurons.v1.AcquisitionService": {
        "ReportSection": _DECIDE,
        "StreamSections": _DECIDE,
    },
    "happyneurons.v1.StageService": {
        "Describe": _LOOK,
        "SubmitJob": Rule(Role.OPERATOR, audited=True, everything=True),
        "GetJob": Rule(Role.VIEWER, everything=True),
        "ListJobs": Rule(Role.VIEWER, everything=True),
        "WatchJob": Rule(Role.VIEWER, everything=True),
        "CancelJob": Rule(Role.OPERATOR, audited=True, everything=True),
        "TailLogs": Rule(Role.VIEWER, everything=True),
    },
    "grpc.health.v1.Health": {"Check": Rule(None), "Watch": Rule(None), "List": Rule(None)},
}

REFLECTION = (
    "grpc.reflection.v1alpha.ServerReflection",
    "grpc.reflection.v1.ServerReflection",
)


def rule_of(service: str, method: str, reflection: Rule) -> Rule | None:
    """The rule of a method; None for one that is not in the table. `reflection`: that of the setting."""
    if service in REFLECTION:
        return reflection
    return METHODS.get(service, {}).get(method)
