"""What everything else stands on: errors, files, paths, settings files, units, progress. Imports nothing of ours."""
