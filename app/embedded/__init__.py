"""What the embedded default brings along: a PostgreSQL server of its own, and the means to run it unprivileged."""
