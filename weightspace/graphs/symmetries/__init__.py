"""Group elements, scales and signs, canonical forms, verification."""
