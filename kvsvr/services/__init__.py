"""Queue, sync and messaging: thin, on the Store protocol, without state of their own (docs/decisions/0040).

They are called by kvsvr.queue, kvsvr.sync and kvsvr.messaging, and want the extra `services` (msgspec).
"""
