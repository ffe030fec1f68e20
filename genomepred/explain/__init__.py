"""What a model has learnt: mutagenesis, gradients, filters and attention."""
