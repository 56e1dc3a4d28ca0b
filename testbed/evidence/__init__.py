"""Evidence about links, hosts, programs and tests."""
