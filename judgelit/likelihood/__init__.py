"""log p(completion | prompt)."""
