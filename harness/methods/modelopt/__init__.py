"""Methods by NVIDIA ModelOpt."""
