"""Facts about this machine: its processor, its GPU, and the versions of installed packages."""
