"""How a model is trained: recipes, flags, the loop, the run and its checkpoint."""
