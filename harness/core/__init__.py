"""Frozen types that every room shares; nothing here reads the disk.

Only the standard library is imported here, and pydantic for what a user writes (``strict``). torch is named for type
checkers alone.
"""
