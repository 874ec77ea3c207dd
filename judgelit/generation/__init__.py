"""Generation: messages in, text out."""
