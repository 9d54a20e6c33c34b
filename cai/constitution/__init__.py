"""Constitutions: load, lint, import, compare, write and show them."""
