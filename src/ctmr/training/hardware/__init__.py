"""How a step is computed: precision and layers, CUDA graphs, memory, several processes."""
