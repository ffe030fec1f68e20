"""What follows a convolution, in one pass: see reference."""
