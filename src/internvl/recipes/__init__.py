"""Training runs as data: functions that return recipes. Only the command line imports this package."""
