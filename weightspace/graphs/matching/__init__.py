"""Bringing one network onto another."""
