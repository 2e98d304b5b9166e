"""The commands that a launch script in bash would run, without running them.

bash itself reads the script, so variables, arrays and conditions come out as they are. But a few text tools are all
that it finds: Python and every other command only have their arguments written down. The file system can be written in
one temporary folder alone, there is no network, and after ten seconds the script is ended. That keeps
accidents in, not malice. Linux only (`unshare`).
"""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

SECONDS = 10.0
HOME = "HOME"
"""What stands for the temporary folder in the arguments: it is the script's home and working directory."""

TOOLS = (
    *("awk", "basename", "bash", "cat", "cut", "dirname", "expr", "grep", "head", "mkdir"),
    *("realpath", "sed", "seq", "sort", "tail", "tee", "tr", "uniq", "wc"),
)
PYTHONS = ("python", "python3")  # files, as `exec python3 …` finds no function

_RECORD = """
record() {
  printf '%s\\0' "$#" "$@" >> "$RECORDED"
  [[ $1 != python* || ${2-} != -c ]]  # a script asks so whether a package is there: it is not
}
command_not_found_handle() { record "$@"; }
ulimit() { :; }  # more than the machine allows would end a script under `set -e`
"""

_JAIL = """
set -e
while read -r _ point _; do
  mount -o remount,ro,bind "$(printf %b "$point")" 2> /dev/null || [ "$point" != / ]
done < /proc/self/mounts
mount --bind "$1" "$1"
mount -o remount,rw,bind "$1"
cd "$1/home"
export BASH_ENV="$1/record.sh" RECORDED="$1/recorded" HOME="$1/home" PATH="$1/tools"
exec "$BASH" "$2"
"""

_UNSHARE = ["unshare", "--map-root-user", "--net", "--mount", "--pid", "--fork", "--kill-child"]
_PATH = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}


@dataclass(frozen=True)
class Calls:
    """What a script called.

    Attributes:
        commands: Programs with their arguments, in order; text tools and programs named by a path are left out.
        trouble: How the script ended, if not well.
    """

    commands: list[list[str]]
    trouble: str = ""


@functools.cache
def available() -> bool:
    """Whether this machine lets a script be shut in."""
    if shutil.which("unshare", path=_PATH["PATH"]) is None:
        return False
    return subprocess.run([*_UNSHARE, "true"], env=_PATH, capture_output=True).returncode == 0


def calls(script: Path, seconds: float = SECONDS) -> Calls:
    """The commands of a script that is given no arguments; a variable that it insists on has its own name as value.

    Raises:
        RuntimeError: This machine has no way to shut the script in.
    """
    if not available():
        raise RuntimeError("unshare (util-linux, with user namespaces) is needed to shut a script in.")
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as errors:
        place = _furnished(Path(folder).resolve())
        command = [*_UNSHARE, "bash", "-c", _JAIL, "jail", str(place), str(script.resolve())]
        nothing = subprocess.DEVNULL
        environment = _PATH | _demanded(script)
        try:
            ended = subprocess.run(
                command, env=environment, timeout=seconds, stdin=nothing, stdout=nothing, stderr=errors
            )
            trouble = f"ended with {ended.returncode}" if ended.returncode else ""
        except subprocess.TimeoutExpired:
            trouble = f"still running after {seconds:g} s"
        if trouble:
            errors.seek(0)
            said = [line.strip() for line in errors if not line.startswith("+")]
            trouble += f": {said[-1]}" if said else ""
        return Calls(_recorded(place), trouble.replace(str(place / "home"), HOME))


def _furnished(place: Path) -> Path:
    """A folder with the tools, the recorder and an empty home."""
    for name in ("tools", "home"):
        (place / name).mkdir()
    for tool in TOOLS:
        if found := shutil.which(tool, path=_PATH["PATH"]):
            (place / "tools" / tool).symlink_to(found)
    for python in PYTHONS:
        stub = place / "tools" / python
        stub.write_text(f'#!{place}/tools/bash\nrecord {python} "$@"\n')
        stub.chmod(0o755)
    (place / "record.sh").write_text(_RECORD)
    (place / "recorded").touch()
    return place


def _demanded(script: Path) -> dict[str, str]:
    """Variables of which the script says ``${NAME:?…}``."""
    return {name: name for name in re.findall(r"\$\{(\w+):?\?", script.read_text())}


def _recorded(place: Path) -> list[list[str]]:
    """What ``record`` wrote: the number of words of a command, then the words, each ended by a zero byte."""
    words = (place / "recorded").read_text(errors="replace").replace(str(place / "home"), HOME).split("\0")
    commands: list[list[str]] = []
    while len(words) > 1:
        count = int(words[0])
        commands.append(words[1 : count + 1])
        words = words[count + 1 :]
    return commands
