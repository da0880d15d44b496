"""Authentication of people and deployments."""
