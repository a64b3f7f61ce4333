"""Scripts whose output is `docs/results.md`: what they measured is never typed by hand."""
