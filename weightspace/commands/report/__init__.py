"""Figures of a zoo and of trained metanetworks, and the one HTML page that shows them."""
