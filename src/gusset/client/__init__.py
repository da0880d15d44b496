"""The manager's API from the outside: for the commands, and for a deployment that reads its secrets there."""
