"""Images on the host: fetched once from the control plane, checked, shared by every disk made from them."""
