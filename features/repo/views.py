"""What Feast shows: derived from the catalogue and the decision of the store that CONCORDANT_STORE names. `feast apply` reads this file."""

import os
from pathlib import Path

from features.store import definitions

# Feast collects the objects that stand here by name.
patient, history, genomics, lifestyle, serving_row, service = definitions(Path(os.environ["CONCORDANT_STORE"]))
