"""ctmr: CT<->MR synthesis, from versioned data to a model that hospitals call."""

from importlib import metadata

__version__ = metadata.version("ctmr")
