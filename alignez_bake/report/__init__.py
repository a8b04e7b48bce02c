"""Tables for people, JSON for machines."""
