"""The pipelines in examples/ are right: parsed as `hpn run` does, with values for what they ask for."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from happyneurons.orchestrator.pipeline import parse_pipeline

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
VALUES = {"bounds_xyz": "[[0, 0, 0], [64, 64, 64]]", "sections": "0-900:100", "validation_sections": "950"}


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda p: p.name)
def test_an_example_is_a_pipeline(path: Path) -> None:
    asked = [name for name, value in yaml.safe_load(path.read_text())["parameters"].items() if value is None]
    given = {name: VALUES.get(name, f"file:///data/{name}") for name in asked}
    pipeline = parse_pipeline(path.read_text(), given, base_uri=path.parent.as_uri())
    assert pipeline.order
