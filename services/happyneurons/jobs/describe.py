"""A stage as data, so that any client can build a form or check a request."""

from __future__ import annotations

from typing import Any

from happyneurons.jobs.stage import Stage


def describe_stage(stage: type[Stage[Any]]) -> dict[str, Any]:
    """Name, version, summary, inputs, outputs and the JSON Schema of the parameters."""
    return {
        "name": stage.name,
        "version": stage.version,
        "summary": stage.summary,
        "inputs": {
            name: {"kinds": list(s.kinds), "description": s.description, "optional": s.optional, "many": s.many}
            for name, s in stage.inputs.items()
        },
        "outputs": {name: {"kind": s.kind, "description": s.description} for name, s in stage.outputs.items()},
        "params": stage.Params.model_json_schema(),
    }
