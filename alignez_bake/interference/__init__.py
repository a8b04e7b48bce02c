"""How the dials of several objectives get in each other's way: geometry of the edits, effects on the model."""
