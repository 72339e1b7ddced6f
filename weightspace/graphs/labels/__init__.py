"""Labels of tensor positions, and the symmetry group that is read off them."""
