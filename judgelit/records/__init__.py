"""Pairs, judgments and examples, and how files in public forms are read into them."""
