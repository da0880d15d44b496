"""What a model downloads before `load`: weights, cached repositories and external data."""
