"""Users, items and events: reading and checking tables, public data sets, statistics and splits."""
