"""A model that is never whole in memory: its parts are read from disk when its own forward pass asks for them."""
