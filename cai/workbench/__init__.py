"""The constitution's workbench: what an edit changes, one prompt through the loop, principles against people. Models are asked here."""
