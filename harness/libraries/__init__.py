"""How each quantization library is driven: what several methods of one library share. None imports another."""
