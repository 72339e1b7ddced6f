"""Operator graphs: architectures without values."""
