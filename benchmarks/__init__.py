"""Benchmarks, imported as ``genomepred.benchmarks``: one file a question."""
