"""Values without behaviour: topology, impairments, results."""
