"""Messages and services generated from protos/ by `make protos`. Do not edit."""
