"""Pipelines, runs, gates and scheduling; the gRPC server and its metrics."""
