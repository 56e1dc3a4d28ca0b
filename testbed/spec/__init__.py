"""Impairments, timelines and profiles; hosts, networks and links that they belong to."""
