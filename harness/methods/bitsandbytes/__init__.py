"""Methods by bitsandbytes."""
