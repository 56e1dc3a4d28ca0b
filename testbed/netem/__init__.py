"""Impairments and tc: the lines that make them, the filters, and the comparison with the kernel's read-back."""
