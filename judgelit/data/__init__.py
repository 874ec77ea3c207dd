"""Records, prompts, verdicts, tokens and batches: all that happens to text before a model sees it."""
