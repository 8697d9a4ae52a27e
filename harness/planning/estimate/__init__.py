"""What a model will take, reckoned from its header or its configuration: nothing is loaded and no backend imported."""
