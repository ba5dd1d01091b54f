"""Values: every one is documented and rendered, and what is not meant is refused before anything is installed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from happyneurons._version import __version__

from .conftest import CHART, ROOT, template

SCHEMA = yaml.safe_load((CHART / "values.schema.yaml").read_text())
MONTAGE = {"name": "montage", "cores": 2}
GOOD: dict[str, Any] = {"store": {"uri": "s3://lab/neurons"}, "stages": [MONTAGE]}
REFUSED = [
    ("{store: {url: 's3://lab'}}", "store", "'url' was unexpected"),
    ("{orchestrator: {replica: 2}}", "orchestrator", "'replica' was unexpected"),
    ("{stages: [{name: montage, core: 2}]}", "stages.0", "'core' was unexpected"),
    ("{stages: [{name: montage}]}", "stages.0", "'cores' is a required property"),
    ("{stages: [{cores: 2}]}", "stages.0", "'name' is a required property"),
    ("{stages: [{name: Montage, cores: 2}]}", "stages.0.name", "does not match"),
    ("{stages: [{name: montage, cores: 0}]}", "stages.0.cores", "less than the minimum"),
    ("{stages: [{name: montage, cores: two}]}", "stages.0.cores", "is not of type 'integer'"),
    ("{orchestrator: {replicas: 0}}", "orchestrator.replicas", "less than the minimum"),
    ("{orchestrator: {replicas: 9}}", "orchestrator.replicas", "greater than the maximum"),
    ("{orchestrator: {port: 50}}", "orchestrator.port", "less than the minimum"),
    ("{store: {uri: 'ftp://lab'}}", "store.uri", "does not match"),
    ("{store: {uri: ''}}", "store", "not valid under any of the given schemas"),
    ("{store: {s3: {endpoint: 'minio:9000'}}}", "store.s3.endpoint", "does not match"),
    ("{store: {persistence: {size: lots}}}", "store.persistence.size", "does not match"),
    ("{store: {persistence: {accessModes: [All]}}}", "store.persistence.accessModes.0", "is not one of"),
    ("{image: {pullPolicy: Sometimes}}", "image.pullPolicy", "is not one of"),
    ("{tls: {enabled: true}}", "tls", "not valid under any of the given schemas"),
    ("{tls: {enabled: true, existingSecret: t}}", "security.enabled", "True was expected"),
    ("{tls: {certManager: {enabled: true}}}", "tls.certManager.issuerRef.name", "non-empty"),
    ("{security: {enabled: true}}", "security.config", "non-empty"),
    ("{kubernetes: {enabled: true}}", "kubernetes.cores", "less than the minimum"),
    ("{volumes: {enabled: true}}", "volumes.targets", "non-empty"),
    ("{ingress: {grpc: {enabled: true}}}", "ingress.grpc.host", "non-empty"),
    ("{gateway: {enabled: true}}", "gateway.parentRefs", "non-empty"),
    ("{acquisition: [{name: sem, run: r}]}", "acquisition.0", "'volume' is a required property"),
    ("{metrics: {serviceMonitor: {interval: often}}}", "metrics.serviceMonitor.interval", "does not match"),
    ("{networkPolicy: {egres: {enabled: true}}}", "networkPolicy", "'egres' was unexpected"),
]


def merged(values: Any, over: Any) -> Any:
    """Values as Helm merges them: mappings are, lists are not."""
    if not isinstance(values, dict) or not isinstance(over, dict):
        return over
    return {**values, **{name: merged(values.get(name), value) for name, value in over.items()}}


def mistakes(given: str) -> list[tuple[str, str]]:
    """(place, what is wrong) by the schema that Helm applies."""
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())
    values = merged(merged(defaults, GOOD), yaml.safe_load(given))
    schema = json.loads((CHART / "values.schema.json").read_text())
    found = jsonschema.Draft7Validator(schema).iter_errors(values)
    return [(".".join(str(step) for step in e.absolute_path), e.message) for e in found]


@pytest.mark.parametrize(("given", "place", "why"), REFUSED, ids=[given for given, *_ in REFUSED])
def test_wrong_values_are_refused(given: str, place: str, why: str) -> None:
    found = mistakes(given)
    assert any(where == place and why in text for where, text in found), found


def test_good_values_are_not() -> None:
    assert mistakes("{}") == []


def test_helm_applies_the_schema(tmp_path: Path) -> None:
    for given in ("{orchestrator: {replica: 2}}", "{tls: {enabled: true, existingSecret: t}}"):
        (tmp_path / "values.yaml").write_text(yaml.safe_dump(merged(GOOD, yaml.safe_load(given))))
        done = template("--values", str(tmp_path / "values.yaml"))
        assert done.returncode != 0, given
        assert "values don't meet the specifications of the schema" in done.stderr


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
