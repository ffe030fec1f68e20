"""A convolution and everything up to the next one: see reference."""
