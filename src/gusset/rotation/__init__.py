"""Rotation by a provider's program: the contract with it, and the order of the steps. No I/O."""
