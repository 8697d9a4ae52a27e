"""Bindings of a library that several rooms share: one file per library, and none imports another."""
