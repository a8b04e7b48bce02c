"""Native re-homing: an equivalent base that has the biases or the MLP's hidden units which edits need."""
