"""What computes a run beside this process: actors of a Ray cluster."""
