"""The HTTP API under ``/v1``: one router per resource; ``runs`` is the builder's side."""
