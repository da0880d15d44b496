"""The model server's routes, websockets and metrics."""
