"""Whole runs, from recordings to a model that speaks."""
