"""What is told of users and items as of a moment, and counts of pairs of items."""
