"""Decoding-time realignment of T5 language models in plain JAX."""

__version__ = "0.2.0"
