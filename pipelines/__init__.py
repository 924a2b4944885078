"""The order, offline: one graph, one command line."""
