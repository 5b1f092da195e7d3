"""The control plane: services over one store, behind one gateway."""
