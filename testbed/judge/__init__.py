"""Judges: from what was recorded to what it means. Pure: no clock, no files, no Docker."""
