"""Optimizers: AdamW as every method uses it, and Online Merging around it."""
