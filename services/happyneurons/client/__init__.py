"""The Python interface: a light client of the orchestrator, pipelines as code, results as arrays."""

from happyneurons.client.client import Client, connect
from happyneurons.client.pipeline import Pipeline
from happyneurons.client.runs import Run

__all__ = ["Client", "Pipeline", "Run", "connect"]
