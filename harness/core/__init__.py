"""Frozen types that every package shares; nothing here reads the disk.

Imports only the standard library, and pydantic for what a user writes (``strict``); torch only for type checkers.
"""
