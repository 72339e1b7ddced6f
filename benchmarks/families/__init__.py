"""Randomly initialised small models of published families, for the coverage table."""
