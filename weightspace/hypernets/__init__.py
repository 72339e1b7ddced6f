"""Networks that write the weights of others. Empty in this version; the import direction is fixed already."""
