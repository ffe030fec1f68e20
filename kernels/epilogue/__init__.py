"""The epilogue of a convolution, in one pass: see reference."""
