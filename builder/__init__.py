"""The program in the builder image: one source in, one image out, then it ends.

It knows the control plane only by ``docs/builder-protocol.md``. The story is told in ``run.py``; each step of it is
the file of that name.
"""

__version__ = "0.1.0"
