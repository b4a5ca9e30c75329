"""What was found, side by side, read from the tracking store."""
