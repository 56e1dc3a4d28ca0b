"""Where the hosts of a lab run."""
