"""The REST API: operations, handlers, models, and the OpenAPI document."""
