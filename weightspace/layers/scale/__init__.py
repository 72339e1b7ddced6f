"""Layers that commute with scales and signs of neurons."""
