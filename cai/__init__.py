"""Align a language model with a written constitution: critique and revision, AI feedback, reward models and policies."""

__version__ = "0.1.0"
