"""Searches container images for secrets' values: every layer, name, link, attribute and config.

Reads OCI folders and archives as streams, never unpacks them, and knows nothing
of engines: a caller passes the stream.
"""
