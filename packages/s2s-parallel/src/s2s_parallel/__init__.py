"""Device mesh, sharding and checkpoints.

Nothing is imported here, so that a size check costs no torch import: take names from the modules.
"""

__version__ = "0.5.2"
