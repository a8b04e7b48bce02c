"""One public function for each command of the command line, of the same name."""
