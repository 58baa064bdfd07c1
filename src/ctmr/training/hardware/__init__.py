"""Computation of a step: precision and layers, CUDA graphs, memory, several processes."""
