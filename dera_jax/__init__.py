"""Decoding-time realignment of T5 language models in plain JAX."""
