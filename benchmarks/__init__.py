"""What the methods do and what the work costs, measured; nothing here is part of the installed tool.

Run from the root of the repository: ``python -m benchmarks.methods --help``, ``python -m benchmarks.speed --help``.
"""
