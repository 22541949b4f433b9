"""An OpenAI-compatible server: protocol, media under limits, routes. Needs the extra "serve"."""
