"""Processors: what a job does with its frames."""
