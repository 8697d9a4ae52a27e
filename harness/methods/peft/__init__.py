"""Methods by PEFT."""
