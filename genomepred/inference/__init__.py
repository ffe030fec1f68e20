"""Codes to predictions: engine, pipeline and runs."""
