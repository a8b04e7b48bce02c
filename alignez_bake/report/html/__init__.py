"""A result as one web page, `report.html`: no script, no file beside it, nothing loaded from anywhere."""
