"""One declaration for each figure that people see, and how it is worked out from the records of a variant."""
