"""Structured sparsity: training that drives whole structures (filters, channels, layers) to zero."""
