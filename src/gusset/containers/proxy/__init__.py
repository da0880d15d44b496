"""The reverse proxy in front of a container."""
