"""Judges: what was recorded in, a verdict out. Pure."""
