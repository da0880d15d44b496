"""Runs a model folder as an application of Ray Serve. Importing it imports Ray: the extra gusset[ray]."""

from gusset.ray.deployment import application, build
from gusset.ray.plan import SecretAccess

__all__ = ["SecretAccess", "application", "build"]
