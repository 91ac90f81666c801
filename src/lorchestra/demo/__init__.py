"""The end-to-end demo: detecting satirical headlines."""
