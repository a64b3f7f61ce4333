"""A package only for gin, which looks for included files in packages and trips over bare folders."""
