"""Audit: whether the policy improved or only exploits its reward. One failure mode per module; `battery` runs all checks."""
