"""A constitution: loaded, linted, imported, written and shown. What is done with it belongs to the floors above."""
