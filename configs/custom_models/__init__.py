"""What flame imports before it builds a model: put the folder above this one first on PYTHONPATH (docs/flame.md).

Importing fla_mesa registers the families `mesanet` and `mesanet_matched` with transformers' Auto classes. flame has a folder of this
name without an `__init__.py`; a package wins over it.
"""

import fla_mesa  # noqa: F401
