"""`forcegauge watch`: a live look at a run, from its record, its agent or a monitor."""
