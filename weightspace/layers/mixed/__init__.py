"""Layers whose parameters belong to types of relations, for mixed architectures."""
