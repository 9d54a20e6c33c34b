"""Did the policy get better, or only better at being scored? One question a module; `battery` puts them together."""
