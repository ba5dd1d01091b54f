"""Executor `kubernetes`: one Kubernetes Job for each attempt."""
