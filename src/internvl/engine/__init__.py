"""Running models for many requests: continuous batching over pages, and what is computed once and kept."""
