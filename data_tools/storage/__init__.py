"""Files that training reads: indexed token files and the index of an exposure store."""
