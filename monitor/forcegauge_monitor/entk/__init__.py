"""The empirical neural tangent kernel of a language model, from one checkpoint: tensors only."""
