"""The campaign of hostile files and faults: what tests run a slice of, and ``benchmarks/robustness.py`` the whole."""
