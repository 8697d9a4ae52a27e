"""What is kept on disk: results, the cache of artifacts, checksums, and the JSON that records are written in."""
