"""Executors take jobs to where they run. One file each; all pass one conformance suite."""
