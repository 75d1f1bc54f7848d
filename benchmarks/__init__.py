"""Timings. None of them is a test."""
