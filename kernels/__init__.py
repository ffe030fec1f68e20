"""Convolution kernels that read bases as codes, imported as ``genomepred.kernels``."""
