"""One request through a model's methods: threads, streams, codecs."""
