"""The demo: its pairs and its run."""
