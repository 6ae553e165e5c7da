"""All data steps of a study, each left as it is where it would write the same bytes again."""
