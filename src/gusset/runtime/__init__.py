"""What the servers share: HTTP, listening, processes, logs, output, watching secrets."""
