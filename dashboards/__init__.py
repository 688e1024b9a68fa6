"""Grafana dashboards as code; ``python -m dashboards`` writes what is generated from them."""

import warnings

with warnings.catch_warnings():
    # on import it asks for the v2 model, which Grafana 10 and 11 cannot read
    warnings.filterwarnings("ignore", "Prefer using dashboardv2", DeprecationWarning)
    import grafana_foundation_sdk.builders.dashboard
    import grafana_foundation_sdk.builders.dashboardv2beta1  # noqa: F401
