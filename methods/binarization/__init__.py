"""Binarization: weights or activations of two values."""
