"""Compact architectures."""
