"""Filter (channel) pruning."""
