"""Hand-made architectures with hand-derived symmetries, for the tests and for the coverage table; needs no pytest."""
