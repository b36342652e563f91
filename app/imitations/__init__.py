"""Stand-ins for the cloud platforms: a test mode for clients without an account, and what our own tests run against.

Each is an ASGI app over a real socket with state behind it. It takes what the platform takes, refuses what it refuses, falls into
the traps that are known of it, and really runs the builder program and the service's program. ``base`` is what they share,
``contracts`` checks each request and answer against the platform's official contract when that is at hand.

They know nothing of ``app.platforms``: what both sides believe must come from the platform's own documents.
"""
