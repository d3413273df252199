"""Weights, ours and those of others: names, shapes and files, never a model class."""
