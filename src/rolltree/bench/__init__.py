"""Benchmarks behind `rolltree bench`: each prints a card for a person and returns one JSON document."""
