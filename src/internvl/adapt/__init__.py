"""Changes to a built model, from outside: patterns over names, adapters, other sizes."""
