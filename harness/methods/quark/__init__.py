"""Methods by AMD Quark."""
