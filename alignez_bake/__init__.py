"""alignez-bake: a pretrained language model aligns itself, and the result is an ordinary model.

One function for each command, of the same name, and the record of an edit. Names are resolved when they are
first used, so importing this package imports neither torch nor transformers.
"""

from __future__ import annotations

__version__ = "0.1.0"
