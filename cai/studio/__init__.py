"""The local web app for people: edit a constitution and see what an edit does, label pairs, watch runs.

`drafts`, `labelling`, `previews` and `jobs` know nothing of the web; `*_pages` are the handlers; `guard` decides who is answered at all.
"""
