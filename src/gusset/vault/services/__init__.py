"""What callers use: secrets, people, access keys, deployments, key rotation."""
