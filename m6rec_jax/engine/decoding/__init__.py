"""Texts for histories, one token after the other."""
