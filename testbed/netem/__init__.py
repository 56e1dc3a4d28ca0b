"""From what is asked to what tc is told, and back: lines, filters, and how the kernel's account differs."""
