"""Building a model: backbone, LoRA, 4-bit weights, sharding, flat-row attention."""
