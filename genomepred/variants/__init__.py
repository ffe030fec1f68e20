"""Variants: what alternative alleles do to a model's predictions."""
