"""A web page to talk to a model: microphone in, speech out, over a WebSocket."""

__version__ = "0.1.0"
