"""Facts, their names, and importers of triples."""
