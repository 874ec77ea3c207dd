"""A stopped run goes on as if it had never stopped: whole checkpoints, one log, the same random numbers."""
