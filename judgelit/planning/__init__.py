"""Memory, time and cost of a configuration, from shapes alone."""
