"""Foundations of all other packages: errors, files, paths, settings files, units, progress. Imports nothing of ours."""
