"""Running models for requests: what is computed once is kept."""
