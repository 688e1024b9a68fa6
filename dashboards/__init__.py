"""Grafana dashboards as code; ``python -m dashboards`` writes what is generated from them."""
