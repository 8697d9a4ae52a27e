"""One declaration for each figure shown to users, and how it is computed from the records of a variant."""
