"""Changes to a built model, applied from outside by parameter name."""
