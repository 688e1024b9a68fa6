"""The parts of the report: a run's story, its figures, its sections, and the page around them."""
