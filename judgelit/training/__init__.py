"""The LightningModules and all that a step of training needs."""
