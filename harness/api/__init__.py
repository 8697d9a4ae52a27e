"""What the public names do: the rooms below put together, reading and writing results where the user says."""
