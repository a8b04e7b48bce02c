"""How the demo model and the benchmark models were made; nothing here is part of the installed tool.

Run from the root of the repository: ``python -m examples.train --help``.
"""
