"""What the bridges to JAX need of its internals."""
