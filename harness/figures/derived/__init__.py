"""Typed values that are worked out from records once and shown by several figures."""
