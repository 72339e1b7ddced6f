"""Learned optimizers: networks as update rules. Empty in this version; the import direction is fixed already."""
