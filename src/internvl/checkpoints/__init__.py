"""Files to state dicts to models, and back: layouts, configurations, the hub."""
