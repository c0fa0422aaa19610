"""A micro-batching inference server for the models of a Triton-layout repository."""
