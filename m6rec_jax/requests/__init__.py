"""Requests of a served model: checking, rendering as text, files of them. No tensorflow."""
