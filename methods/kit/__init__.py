"""Shared numerics of the methods, each thing once."""
