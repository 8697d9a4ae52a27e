"""Drafts a recipe for a model: the methods that suit it and this machine, and as much measuring as the time allows."""
