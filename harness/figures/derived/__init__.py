"""Typed values that are computed from records once and used by several figures."""
