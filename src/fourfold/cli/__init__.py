"""The command line: arguments, progress bars and exit codes; no logic."""
