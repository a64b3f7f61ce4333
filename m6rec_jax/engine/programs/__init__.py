"""Compiled functions: where they run, where they are kept, and those of exports."""
