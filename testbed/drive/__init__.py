"""Workloads: programs are run across a link, and what they and the kernel recorded comes back."""
