"""What each model type can be given, one JSON file a type; `places.py` says what the entries mean."""
