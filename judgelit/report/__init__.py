"""A run or results as one self-contained HTML page."""
