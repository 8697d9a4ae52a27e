"""What is found out about a run before its figures are believed."""
