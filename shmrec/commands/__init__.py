"""The command-line tools: one file per verb, found by name."""
