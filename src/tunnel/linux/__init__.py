"""What we ask of Linux: a TUN device, UDP sockets, netlink. One file for each."""
