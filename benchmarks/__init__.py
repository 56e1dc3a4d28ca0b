"""Benchmarks: the speed that testbed promises, measured beside its alternatives."""
