"""The way of a service, one file per verb:

1. ``release`` writes a release: an artifact, a config, a platform; *pending*. Every change of a service is one.
2. ``promote`` takes a release to *live*: ``claim`` the service (``targets`` says whether the platform may be tried now),
   ``bring_up`` beside the old one and gate it from outside (``pull`` is what its image is pulled with, ``probe`` one look,
   ``last_words`` what a program said before it failed), switch over.
3. ``rollback`` makes releases out of old ones, of artifacts and of config changes.
4. ``migrate`` moves a service to another platform, and ``leave`` takes it off the one before.
5. ``sleep_wake`` takes a running service to zero and back.
6. ``retire`` removes what a superseded or failed release left on its platform; ``delete`` removes a whole service.
7. ``rewrap`` seals secrets anew after a rotation of keys; ``sweep`` makes up for whatever time and crashes leave behind.
"""
