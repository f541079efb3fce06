"""Tests the C core against scapy and simple models, one call at a time."""
