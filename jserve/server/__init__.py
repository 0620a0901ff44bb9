"""The HTTP server: OpenAI's API for an engine loop."""
