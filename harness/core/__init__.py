"""The words of the house: frozen types that every room shares, and no behaviour that reads the disk.

Only the standard library is imported here, and pydantic for what a user writes (``strict``). torch is named for type
checkers alone.
"""
