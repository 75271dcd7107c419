"""Whether the Hugging Face hub can be asked: found out once, in seconds."""

from __future__ import annotations

import os
import socket
from functools import cache
from urllib.parse import urlsplit

TIMEOUT = 5.0  # seconds for a first connection
PROXIES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")


@cache
def hub_reachable() -> bool:
    """Tell whether the hub answers; pass `local_files_only=not hub_reachable()` to what loads by name.

    Without a network, the hub's library tries each file again and again for a minute and prints each attempt.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    if any(os.environ.get(name) for name in PROXIES):
        return True  # the proxy resolves names; its own errors say what is wrong
    url = urlsplit(constants.ENDPOINT)
    port = url.port or (80 if url.scheme == "http" else 443)
    try:
        socket.create_connection((url.hostname or "", port), timeout=TIMEOUT).close()
    except OSError:
        return False
    return True
