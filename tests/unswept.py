"""Imported first by the server of reading processes, as main_nni.py is: see there."""

import gc

gc.disable()
