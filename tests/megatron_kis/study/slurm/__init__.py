"""Of a study on a cluster: what needs no cluster."""
