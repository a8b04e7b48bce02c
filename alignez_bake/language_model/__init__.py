"""Loading a causal language model, sampling from it, and its log-probabilities."""
