"""Reward functions. `protocol.Reward` defines the interface."""
