"""The facts of a study, chosen from a source of triples."""
