"""Where builders and services run. Read ``base.py`` first; a platform is one folder beside it."""
