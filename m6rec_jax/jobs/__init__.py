"""What the model does for a recommender, one file a job; `job.jobs` has all of them.

Importing any of them registers all: their settings must be known before gin is locked.
"""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
