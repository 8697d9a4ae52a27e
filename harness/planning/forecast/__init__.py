"""How long the runs of a plan will take, what they leave on disk, and what they cost."""
