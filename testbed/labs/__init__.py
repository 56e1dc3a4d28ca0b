"""Labs: bring hosts and links up, run programs in them, take them down again."""
