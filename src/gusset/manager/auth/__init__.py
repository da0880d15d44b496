"""Authentication and authorization of people and deployments."""
