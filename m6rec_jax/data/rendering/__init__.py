"""Views of events and corpora of texts: which rows there are, and their text."""
