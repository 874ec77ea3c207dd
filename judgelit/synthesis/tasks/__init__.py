"""Verifiable preference pairs with worked judgments."""
