"""Layers of Neural Graphs: one set of parameters for all edges of a parameter graph."""
