"""What `gusset agent` consists of besides the command line: the folder, and the notice to systemd."""
