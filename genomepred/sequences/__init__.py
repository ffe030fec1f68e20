"""Bytes to codes: FASTA decoding, indexed genomes and the grid of windows."""
