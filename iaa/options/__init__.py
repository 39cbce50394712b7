"""The options of the commands beside main_nni.py's, which are in option.py, and what is checked of them. No torch in here."""
