"""Figures: one declaration for each number that people see."""
