"""Names found in general text, and text without the documents that state a fact."""
