"""Means of signals, as labels of a training; see :mod:`genomepred.data.signals`."""

from genomepred.data.signals import window_means

__all__ = ["window_means"]
