"""Search: how much of each layer is to go."""
