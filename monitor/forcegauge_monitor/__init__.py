"""The monitor's side of forcegauge: what is computed from checkpoints, beside the training."""
