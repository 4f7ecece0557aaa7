"""The graph, its executors and the recipe: how one recipe becomes one image."""
