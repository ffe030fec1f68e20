"""Data, loop and metrics for training the models of the set."""
