"""The verbs: each file makes its commands out of what the API can do."""
