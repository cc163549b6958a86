"""A policy server over WebSocket, and its client."""
