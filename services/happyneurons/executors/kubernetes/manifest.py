"""A submission as a Kubernetes Job."""

from __future__ import annotations

import copy
import hashlib
import math
import os
import re
import time
import uuid
from pathlib import Path
from typing import Any

import yaml

from happyneurons.errors import UserError
from happyneurons.executors.base import Submission
from happyneurons.executors.kubernetes.config import KubernetesAccess
from happyneurons.jobs.spec import Resources, parse_job_uri
from happyneurons.store.roots import VARIABLE as ALLOWED_ROOTS
from happyneurons.worker.launch import Launch, stage_arguments, thread_variables

Record = dict[str, Any]

LABEL_SITE = "happyneurons.io/site"
LABEL_STAGE = "happyneurons.io/stage"
JOB_URI = "happyneurons.io/job-uri"
SUBMITTED = "happyneurons.io/submitted"
"""Nanoseconds since 1970 by the orchestrator's clock: Kubernetes' own times have whole seconds, and jobs have turns."""
CORES = "happyneurons.io/cores"
MEMORY_GB = "happyneurons.io/memory-gb"
CANCELLED = "happyneurons.io/cancelled"
"""Seconds since 1970 when it was cancelled."""

WALLTIME_GRACE_S = 120
"""The job drains by itself before its walltime; so much later Kubernetes ends it."""

_LABEL = re.compile(r"[^A-Za-z0-9_.-]")


def load_template(path: Path | None) -> Record:
    """A pod template; without a file one that only says that nothing is restarted. Raises UserError."""
    if path is None:
        return {"spec": {"containers": [{"name": "job"}], "restartPolicy": "Never"}}
    try:
        document = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UserError(f"pod template {path}: {error.strerror}") from None
    except yaml.YAMLError:
        raise UserError(f"pod template {path}: not valid YAML") from None
    containers = (document.get("spec") or {}).get("containers") if isinstance(document, dict) else None
    if not isinstance(containers, list) or not containers or not isinstance(containers[0], dict):
        raise UserError(
            f"pod template {path}: expected `spec: {{containers: [{{name: job}}]}}`, as in a Job's template"
        )
    return document


def label(text: str) -> str:
    """Text as the value of a label: at most 63 characters, of those allowed."""
    return _LABEL.sub("-", text)[:63].strip("-_.")


def job_name(submission: Submission, site: str) -> str:
    """Name of the Job: the same whenever a submission with a token is repeated."""
    _, key = parse_job_uri(submission.job_uri)
    token = submission.token or uuid.uuid4().hex
    digest = hashlib.sha256(f"{site}\n{key}\n{token}".encode()).hexdigest()
    return f"hpn-{label(submission.stage).lower().replace('_', '-').replace('.', '-')[:30]}-{key[:8]}-{digest[:12]}"


def gpus(resources: Resources) -> int:
    """Whole GPUs that a job asks for: ranks may share them."""
    return math.ceil(resources.ranks * (resources.gpus_per_rank or 0))


def job_manifest(name: str, site: str, submission: Submission, access: KubernetesAccess, template: Record) -> Record:
    """The Job, suspended: it starts when it is its turn."""
    resources = submission.resources
    pod = copy.deepcopy(template)
    labels = {LABEL_SITE: label(site), LABEL_STAGE: label(submission.stage)}
    metadata = pod.setdefault("metadata", {})
    metadata["labels"] = {**(metadata.get("labels") or {}), **labels}
    pod["spec"]["restartPolicy"] = "Never"
    _fill(pod["spec"]["containers"][0], submission, access)
    spec: Record = {
        "suspend": True,
        "backoffLimit": 0,  # the orchestrator decides about retrying
        "completions": 1,
        "parallelism": 1,
        "ttlSecondsAfterFinished": access.keep_finished_s,
        "template": pod,
    }
    if resources.walltime_min is not None:
        spec["activeDeadlineSeconds"] = math.ceil(resources.walltime_min * 60) + WALLTIME_GRACE_S
    annotations = {
        JOB_URI: submission.job_uri,
        SUBMITTED: str(time.time_ns()),
        CORES: str(resources.cores),
        MEMORY_GB: f"{resources.memory_gb or 0:g}",
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "labels": {**(metadata["labels"]), **labels}, "annotations": annotations},
        "spec": spec,
    }


def _fill(container: Record, submission: Submission, access: KubernetesAccess) -> None:
    """What differs from job to job. Images of stages start `hpn-stage`."""
    resources = submission.resources
    arguments = stage_arguments(
        Launch(submission.job_uri, resources, submission.takeover, submission.retry_quarantined)
    )  # fmt: skip
    container["image"] = access.image.format(stage=submission.stage)
    if resources.ranks == 1:
        container["args"] = arguments
    else:  # one more rank coordinates
        container["command"] = ["mpiexec", "-n", str(resources.ranks + 1), "hpn-stage", *arguments]
    own = [{"name": name, "value": value} for name, value in thread_variables(resources).items()]
    if roots := os.environ.get(ALLOWED_ROOTS):  # where this server's ranks may read counts for these, too
        own.append({"name": ALLOWED_ROOTS, "value": roots})
    names = {variable["name"] for variable in own}
    container["env"] = [v for v in container.get("env") or [] if v["name"] not in names] + own
    asked: Record = {"cpu": str(resources.cores)}
    limits: Record = {}
    if resources.memory_gb:
        asked["memory"] = limits["memory"] = str(math.ceil(resources.memory_gb * 1e9))
    if gpus(resources):
        limits[access.gpu_resource] = str(gpus(resources))
    before = container.get("resources") or {}
    container["resources"] = {
        **before, "requests": {**(before.get("requests") or {}), **asked},
        "limits": {**(before.get("limits") or {}), **limits},
    }  # fmt: skip
