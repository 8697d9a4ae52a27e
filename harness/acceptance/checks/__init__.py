"""One file per subject. A check runs recipes on its bench and yields findings."""
