"""The acceptance test of a machine, for people: checks that end in PASS, FAIL or SKIP, and what they leave to send."""
