"""Docker or Podman: images, containers, sockets, registries."""
