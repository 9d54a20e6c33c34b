"""The local web app: edit constitutions and preview the effect of an edit, label pairs, monitor runs.

`drafts`, `labelling`, `trials` and `jobs` do not depend on the web framework. `*_pages` are the request handlers. `guard` checks every
request.
"""
