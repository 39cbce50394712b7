"""The options of all commands but main_nni.py, whose options are in option.py, and their checks. No torch in here."""
