"""Webhooks: a project's endpoints are told of its events, each at least once.

    endpoints   make, change and rotate them; test one, deliver again
    plan        events past an endpoint's position become its deliveries
    send        claim what is due, POST it, record what came of it: delivered, tried again later, or given up
    message     what is sent, and its signatures
    client      the one way out: to addresses that were checked, in bounded time
    courier     the loop of a worker that does all this

The position of an endpoint moves in the transaction that writes its deliveries, so no event is lost or planned twice. An
attempt is claimed before it is made, and a claim that nobody ends is taken up by somebody else: so a receiver may get a
message twice, under the same id. Deliveries about one build (else one service) wait for each other in a lane.
"""
