"""First convolution of a model straight from codes: see reference."""
