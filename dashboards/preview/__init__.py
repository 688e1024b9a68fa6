"""Looking at the dashboards without a Grafana server; for development only."""
