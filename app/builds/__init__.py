"""The way of a build, one file per verb:

1. ``submit`` writes the build and its first job in one transaction: *queued*. ``checks`` has held it against what the
   platforms can do, ``sources`` keeps what ``archives`` has packed or read, ``cache`` and ``reuse`` see whether there is an
   image already; ``batch`` does it for many at once.
2. ``dispatch`` takes a free slot, writes the run, launches a builder under the run's name: *dispatching*, then *building*.
   ``slots`` says whose turn it is, ``targets`` on which platforms and in which regions; ``launch`` goes through the regions,
   and ``launched`` records what came of it.
3. ``report`` hears the builder while it works: claim, logs, heartbeats, push grant. ``complete`` takes its signed last
   word, a ``completion``: the image is checked in the registry, and artifact and next job are one transaction: *promoting*,
   or *succeeded* without a service.
4. ``app.services.promote`` brings the release up, gates it and switches over: *succeeded*.
5. ``cleanup`` removes the builder's machine. ``cancel`` ends a build that nobody wants any more.
6. What time and crashes leave behind: ``reconcile`` gives quiet rows their jobs again, ``look_after`` and ``sweep`` compare rows
   with platforms, ``retention`` removes what is past its keeping.
"""
