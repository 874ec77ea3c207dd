"""What a user does around training."""
