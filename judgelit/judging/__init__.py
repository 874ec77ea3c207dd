"""The text of judging, without tensors: templates, prompts, truncation, verdicts."""
