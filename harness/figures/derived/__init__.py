"""Typed values between the records of a variant and the figures that people see."""
