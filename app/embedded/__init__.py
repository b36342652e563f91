"""What the embedded default brings along: a PostgreSQL server of its own, and the means to run things unprivileged.

``postgres`` is the server: it takes the home's lock (``owner``), waits for what an earlier owner left, finds programs
that its account can execute (``binaries``), makes or checks the data (``cluster``), and runs it on a socket of its own
(``sockets``). ``reach`` runs any command as the dropped account, by way of the ``launcher``.
``python -m app.embedded HOME psql`` runs a command beside the server.
"""
