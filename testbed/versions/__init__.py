"""Two versions side by side: a checkout of the other revision, a pytest process for each, pairs of runs."""
