"""The demo: satirical or ordinary headlines, end to end."""
