"""Pictures of parameter graphs and operator graphs."""
