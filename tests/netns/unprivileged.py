"""Commands that run as ``nobody``, even from a checkout that only root can enter."""

import sys
import sysconfig
from pathlib import Path

import tunnel

# Binds the interpreter, its packages and ours to places that everybody can read, in a mount
# namespace of its own.
_SCRIPT = """
mount -t tmpfs none /mnt
mkdir /mnt/python /mnt/site /mnt/src
mount --bind {base} /mnt/python
mount --bind {site} /mnt/site
mount --bind {src} /mnt/src
{more}
export PYTHONPATH=/mnt/src:/mnt/site LD_LIBRARY_PATH=/mnt/python/lib
cd /
exec setpriv --reuid=65534 --regid=65534 --clear-groups -- /mnt/python/bin/{python} "$@"
"""


def python_as_nobody(*, more: str = "") -> list[str]:
    """The first words of a command that runs this Python as ``nobody``; `more` is shell that root
    runs before."""
    script = _SCRIPT.format(
        base=sys.base_prefix,
        site=sysconfig.get_path("purelib"),
        src=Path(tunnel.__file__).parent.parent,
        python=Path(sys.executable).resolve().name,
        more=more,
    )
    return ["unshare", "--mount", "sh", "-ec", script, "sh"]
