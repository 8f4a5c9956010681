"""Quantization: few values for each weight or activation."""
