"""Rewards: what is good. `protocol.Reward` says what one is."""
