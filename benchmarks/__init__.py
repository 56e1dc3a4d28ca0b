"""Benchmarks: what testbed promises about its own speed, measured beside what one would use in its place."""
