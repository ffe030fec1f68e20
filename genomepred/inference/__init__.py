"""Codes to predictions: engine, pipeline and runs."""

from genomepred.machine import require_address_space

require_address_space()  # before torch is loaded, which cannot say what it lacks
