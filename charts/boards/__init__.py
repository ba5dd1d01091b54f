"""Grafana boards as code: `python -m charts.boards` writes charts/happyneurons/dashboards/*.json."""
