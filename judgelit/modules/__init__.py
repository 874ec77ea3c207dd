"""The losses, the reference and the Lightning modules that train with them."""
