"""General ability: the loss on held-out general examples, and instructions that a program can check."""
