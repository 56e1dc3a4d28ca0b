"""What a Compose file says, read as Compose reads it; and Compose itself."""
