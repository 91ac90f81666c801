"""The HTTP server: two routes for decisions, its request queue, and its page."""
