"""A package only for gin, which looks for included files in packages, not in bare folders."""
