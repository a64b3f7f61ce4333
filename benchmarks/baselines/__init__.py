"""Other people's models on our splits, in an environment of their own (README.md beside this)."""
