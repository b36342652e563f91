"""OCI images: names, layouts on disk, the embedded registry, a client for any registry, copy, inspect, collect.

``access.Images`` is the door for the rest of the project. Nothing here knows the database or a platform.
"""
