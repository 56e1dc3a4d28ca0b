"""Links: what is asked of them, how the kernel is told, and whether it holds."""
