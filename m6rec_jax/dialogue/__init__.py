"""Dialogues that ask for something: what is wished for, which items obey, what may be replied."""
