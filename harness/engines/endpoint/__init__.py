"""A server with OpenAI's API that the user runs."""
