"""Benchmarks: which problems, how a model answers them, what counts as right, and how sure the figure is."""
