"""One module per public function; only these put the rooms below together and read results where the user says."""
