"""The C core against scapy and naive twins, one call at a time."""
