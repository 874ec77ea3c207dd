"""Held-out pairs to numbers: verdicts in both orders, metrics with intervals."""
