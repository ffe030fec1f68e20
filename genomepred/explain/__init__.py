"""Explanations of a model: mutagenesis, gradients, filters and attention."""
