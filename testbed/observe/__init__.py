"""What was observed: kernel counters, TCP_INFO over time, packets. Pure values and functions of them."""
