"""The command line as a client: everything here goes by the public API, and knows nothing of the server's code.

``command`` makes a function a command: it opens a ``Caller``, and turns what goes wrong into a sentence and an exit code.
``config`` says where the API is, ``api`` calls it and follows its streams, ``pack`` makes an archive of a folder, ``watch``
shows a build as it goes, ``screen`` prints for people and for programs. Each verb is a file in ``commands``.
"""
