"""Reports: what was measured, for a person to read."""
