"""`judgelit run`: the recipe, from preference pairs to a measured judge, as stages that can be resumed."""
