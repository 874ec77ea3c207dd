"""The run folder: checkpoints, exact resume, logs, export, model card."""
