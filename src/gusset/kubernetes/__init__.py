"""Manifests for Kubernetes, as plain data and text. Pure: reads no file, and sends nothing to a cluster."""
