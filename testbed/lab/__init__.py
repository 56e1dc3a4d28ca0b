"""A lab: hosts and links that are up together, what is put on links, and what is found of them."""
