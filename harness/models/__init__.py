"""Where weights come from: hub ids, folders, GGUF files, files in packages, random weights."""
