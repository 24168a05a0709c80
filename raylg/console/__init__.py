"""What the commands show: terminals, progress, tables."""
