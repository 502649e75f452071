"""Benchmarks behind `rolltree bench`: each prints a summary for a person and returns one JSON document."""
