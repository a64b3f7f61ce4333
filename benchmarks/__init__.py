"""Scripts whose output is `docs/results.md`: nothing in that file is typed by hand."""
