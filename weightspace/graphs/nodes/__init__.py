"""Nodes of the parameter graph, followed through a program."""
