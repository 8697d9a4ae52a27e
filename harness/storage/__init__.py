"""Storage on disk: results, the artifact cache, checksums, and the JSON format of records."""
