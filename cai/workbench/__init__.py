"""The workbench: measure the effect of an edit to a constitution, try one prompt, and validate principles on human labels."""
