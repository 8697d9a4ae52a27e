"""One module per public function. Only these combine the lower packages and read results from paths the user names."""
