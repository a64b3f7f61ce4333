"""Runs tasks through inference and metrics, and shows what came out."""
