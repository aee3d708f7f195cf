"""Metrics, trackers and the run report."""
