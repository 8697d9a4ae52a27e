"""From a recipe to the ordered runs of its sweep; no model is loaded and no result is written."""
