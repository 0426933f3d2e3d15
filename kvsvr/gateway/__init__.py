"""The access layer: HTTP, WebSocket and server-sent events before kvsvr.messaging (docs/gateway.md).

    tickets.py    who somebody is: signed, and for a while
    failures.py   what can be refused, with which status, and what helps
    limits.py     how much one user may ask for
    frames.py     requests that the gateway itself answers, and how requests and replies are written
    desk.py       what all connections share: requests in threads, waiting in the event loop
    short.py      requests over HTTP, and server-sent events
    session.py    a WebSocket: requests and push
    app.py        the routes, and the page of `kvsvr chat`; server.py: uvicorn, workers, a stop

Nothing is kept here that another instance would miss: tickets are signed with a secret that is in the store, and where
a device is, its sync key says. Wants the extra `gateway`.
"""
