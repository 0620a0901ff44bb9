"""The HTTP face: OpenAI's API on one side, an engine loop on the other."""
