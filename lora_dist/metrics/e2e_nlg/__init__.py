"""A folder for `evaluate.load`; see e2e_nlg.py."""
