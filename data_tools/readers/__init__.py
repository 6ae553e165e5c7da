"""Text files of many formats, packed or not, as documents with their places."""
