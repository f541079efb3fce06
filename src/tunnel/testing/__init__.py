"""
What tests of an overlay need, ours and yours: hosts made of network namespaces (``lab``) and
measurements between them (``bench``). Imports errors only.
"""
