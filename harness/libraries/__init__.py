"""Library bindings that several rooms share: one file per library; none imports another."""
