"""Helpers of the tests: models, programs, files and oracles. Nothing here is a test, and no test imports a test."""
