"""The local web app, by real requests to it on a free port."""
