"""Values: every one is documented and rendered, and what is not meant is refused before anything is installed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from happyneurons._version import __version__

from .conftest import CHART, ROOT, template

SCHEMA = yaml.safe_load((CHART / "values.schema.yaml").read_text())
REFUSED = [
    ("store.url=s3://lab", "additional properties 'url' not allowed"),
    ("orchestrator.replica=2", "additional properties 'replica' not allowed"),
    ("stages[0].name=montage,stages[0].core=2", "additional properties 'core' not allowed"),
    ("stages[0].name=montage", "missing property 'cores'"),
    ("stages[0].cores=2", "missing property 'name'"),
    ("stages[0].name=Montage,stages[0].cores=2", "does not match pattern"),
    ("stages[0].name=montage,stages[0].cores=0", "minimum"),
    ("stages[0].name=montage,stages[0].cores=two", "got string, want integer"),
    ("orchestrator.replicas=0", "minimum"),
    ("orchestrator.replicas=9", "maximum"),
    ("orchestrator.port=50", "minimum"),
    ("store.uri=ftp://lab", "does not match pattern"),
    ("store.uri=", "minLength"),
    ("store.s3.endpoint=minio:9000", "does not match pattern"),
    ("store.persistence.size=lots", "does not match pattern"),
    ("store.persistence.accessModes[0]=All", "must be one of"),
    ("image.pullPolicy=Sometimes", "must be one of"),
    ("tls.enabled=true", "tls"),
    ("tls.enabled=true,tls.existingSecret=t", "security"),
    ("tls.enabled=true,tls.certManager.enabled=true,security.enabled=true,security.config.tokens=t", "issuerRef"),
    ("security.enabled=true", "minProperties"),
    ("kubernetes.enabled=true", "minimum"),
    ("volumes.enabled=true", "minProperties"),
    ("ingress.grpc.enabled=true", "minLength"),
    ("gateway.enabled=true", "minItems"),
    ("acquisition[0].name=sem,acquisition[0].run=r", "missing property 'volume'"),
    ("metrics.serviceMonitor.interval=often", "does not match pattern"),
    ("networkPolicy.egres.enabled=true", "additional properties 'egres' not allowed"),
]


@pytest.mark.parametrize(("setting", "why"), REFUSED, ids=[setting for setting, _ in REFUSED])
def test_wrong_values_are_refused(setting: str, why: str) -> None:
    good = [] if setting.startswith("stages") else ["--set", "stages[0].name=montage,stages[0].cores=2"]
    done = template("--set", "store.uri=s3://lab/neurons", *good, "--set", setting)
    assert done.returncode != 0, setting
    assert "values don't meet the specifications of the schema" in done.stderr
    assert why.lower() in done.stderr.lower()


def fields(part: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    for name, field in part.get("properties", {}).items():
        place = f"{path}.{name}".lstrip(".")
        yield place, field
        yield from fields(field, place)
        if field.get("type") == "array":
            yield from fields(field.get("items", {}), f"{place}[]")


def test_every_value_is_documented_and_nothing_else_is_allowed() -> None:
    for place, field in fields(SCHEMA):
        assert field.get("description"), place
        if "properties" in field:
            assert field["additionalProperties"] is False, place
        if field.get("type") == "array" and "properties" in field["items"]:
            assert field["items"]["additionalProperties"] is False, place


def test_every_value_has_a_default_that_can_be_read() -> None:
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())
    for place, _ in fields(SCHEMA):
        if "[]" in place or place == "global":
            continue
        found: Any = defaults
        for name in place.split("."):
            assert name in found, f"{place} is not in values.yaml"
            found = found[name]


def test_the_largest_values_file_sets_every_value() -> None:
    """So that the other tests see every line of the templates."""
    given = yaml.safe_load((CHART / "ci/everything-values.yaml").read_text())
    set_elsewhere = ("global", "nameOverride", "podSecurityContext", "securityContext", "tls.certManager", "volumes.")
    for place, field in fields(SCHEMA):
        if "properties" in field or ("[]" in place and "properties" in field.get("items", {})):
            continue
        top = place.split(".")[0]
        if place.startswith(set_elsewhere) or top not in given:
            continue
        if "[]" in place:
            head, _, tail = place.partition("[].")
            if tail.startswith("resources"):
                continue
            assert any(tail in item for item in given[head]), place


def test_what_is_made_from_the_schema_is_up_to_date() -> None:
    done = subprocess.run([sys.executable, str(ROOT / "scripts/chart"), "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_chart_is_of_the_packages_version() -> None:
    assert yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"] == __version__
