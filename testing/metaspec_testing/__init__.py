"""What tests and benchmarks share: real servers, small models, a real Triton, an independent solver. Not published."""
