"""Compose files, read as Compose does; and the Compose command."""
