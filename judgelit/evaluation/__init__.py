"""Evaluation: judgments of held-out pairs, and metrics with intervals."""
