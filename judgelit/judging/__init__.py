"""The text of judging: templates, prompts, truncation, verdicts. No tensors."""
