"""The frozen base: where it comes from, and how members are put on it."""
