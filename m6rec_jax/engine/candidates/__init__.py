"""Numbers for candidates of a history: how likely a user likes them, or words about them."""
