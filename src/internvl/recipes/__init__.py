"""Training runs as data: functions that return recipes. Nothing imports this package."""
