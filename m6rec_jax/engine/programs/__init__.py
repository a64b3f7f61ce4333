"""Compiled functions: where they run, where they are kept, and those that exports hold."""
