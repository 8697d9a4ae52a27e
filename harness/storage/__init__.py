"""What is kept on disk: results, the cache of artifacts, and the JSON that both are written in."""
