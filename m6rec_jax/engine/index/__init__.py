"""Vectors of users and items, exact search in a catalogue, and the order of what is found."""
