"""The pipeline on one machine: the contract of a stage, its parameters, and the ways to run the eight."""
