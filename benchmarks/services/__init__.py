"""Five services that many stacks have, and a suite of tests of them."""
