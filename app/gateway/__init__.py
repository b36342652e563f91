"""Wakes sleeping services where the platform can't, and passes their traffic on.

``server`` accepts; ``connection`` reads one request head after another (``head``); ``proxy`` takes each to its service
and the answer back, over upstream connections that ``pool`` keeps, while ``upload`` sends its body; ``tunnel`` is what
follows a 101. ``wire`` is one TCP connection, ``limits`` all bounds, ``problems`` the answers of our own. All of that
knows HTTP and the Protocol in ``routes``, which ``rows`` fulfils from the database, with a ``knock`` where the platform
wakes by itself; ``leases`` writes down what is in flight, ``idle`` lets services sleep, and ``run`` puts it all together.
"""
