"""Predictions to disk and back."""
