"""Messages, one to one and in groups, on any store: docs/messaging.md."""

from kvsvr.services.messaging import Messaging
from kvsvr.services.refused import Refused
from kvsvr.services.words import AnyReply, AnyRequest, Message, Sent

__all__ = ["AnyReply", "AnyRequest", "Message", "Messaging", "Refused", "Sent"]
