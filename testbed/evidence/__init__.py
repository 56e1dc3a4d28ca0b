"""What was found: of links, hosts, programs and tests."""
