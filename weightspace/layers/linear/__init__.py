"""Linear equivariant layers on the blocks of a weight space."""
