"""Synthesis: preference pairs to training sets of judgments."""
