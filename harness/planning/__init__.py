"""From a recipe to the ordered runs of its sweep. Nothing is loaded, and no result is written."""
