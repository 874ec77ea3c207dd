"""Memory and time of a training configuration, planned from shapes alone."""
