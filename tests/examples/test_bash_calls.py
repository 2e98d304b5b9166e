"""What a launch script would run is read by bash itself, and nothing of it happens."""

from __future__ import annotations

import contextlib
import socket
import time
from pathlib import Path

import bash_calls
import pytest

pytestmark = pytest.mark.skipif(not bash_calls.available(), reason="unshare or user namespaces are not there")


def script(folder: Path, text: str) -> Path:
    path = folder / "run.sh"
    path.write_text(text)
    return path


def called(folder: Path, text: str) -> list[list[str]]:
    return bash_calls.calls(script(folder, text)).commands


def running(folder: Path) -> list[bytes]:
    """Command lines of processes that name the folder."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has just ended
            lines.append(path.read_bytes())
    return [line for line in lines if str(folder).encode() in line]


def test_arguments_come_out_as_bash_makes_them(tmp_path: Path) -> None:
    text = r"""#!/usr/bin/env bash
    set -xeuo pipefail
    ulimit -n 9999999
    # python3 -m verl.trainer.main_ppo this=comment
    n=${N:-8}; length=$((n * 1024))
    [ "${GPUS:-1}" -gt 1 ] && many=True || many=False
    DATA=(
        data.train_files="$HOME/data/a b.parquet"
        data.max_response_length=${length}  # tokens
    )
    EXTRA=()
    exec python3 -m verl.trainer.main_ppo \
        "${DATA[@]}" "${EXTRA[@]}" trainer.logger='["console","wandb"]' \
        many=$many path=${LORA:?must be set} home=$PWD \
        "$@" 2>&1 | tee logs.txt
    """
    assert called(tmp_path, text) == [
        [
            "python3",
            "-m",
            "verl.trainer.main_ppo",
            "data.train_files=HOME/data/a b.parquet",
            "data.max_response_length=8192",
            'trainer.logger=["console","wandb"]',
            "many=False",
            "path=LORA",
            "home=HOME",
        ]
    ]


def test_a_script_that_asks_for_a_package_hears_that_it_is_not_there(tmp_path: Path) -> None:
    text = "python3 -c 'import torch_npu' && device=npu || device=gpu\npython -m main device=$device"
    assert called(tmp_path, text)[-1] == ["python", "-m", "main", "device=gpu"]


def test_a_file_beside_the_script_is_read(tmp_path: Path) -> None:
    (tmp_path / "common.sh").write_text("batch=7")
    text = 'source "$(dirname "${BASH_SOURCE[0]}")/common.sh"\npython3 -m main batch=$batch'
    assert called(tmp_path, text) == [["python3", "-m", "main", "batch=7"]]


def test_a_script_without_an_end_is_ended_with_its_children(tmp_path: Path) -> None:
    started = time.monotonic()
    text = "python3 -m main x=1\n(while :; do :; done) &\nwhile :; do :; done"
    got = bash_calls.calls(script(tmp_path, text), seconds=1)
    assert got == bash_calls.Calls([["python3", "-m", "main", "x=1"]], "still running after 1 s")
    while running(tmp_path):  # the kernel ends the children a moment after their parent
        assert time.monotonic() - started < 30
        time.sleep(0.05)


@pytest.mark.parametrize(
    "harm",
    [
        "rm -rf {keep}",
        "/bin/rm -rf {keep}",
        "curl -o {keep}/new http://localhost:{port}",
        "/usr/bin/env rm {keep}/file",
        "echo new > {keep}/file",
        "mkdir -p {keep}/new",
        "sed -i s/old/new/ {keep}/file",
        "echo new | tee {keep}/file",
        "mount -o remount,rw,bind / ; echo new > {keep}/file",
    ],
)
def test_nothing_happens(harm: str, tmp_path: Path) -> None:
    keep = tmp_path / "keep"
    keep.mkdir()
    (keep / "file").write_text("old")
    commands = called(tmp_path, harm.format(keep=keep, port=1) + "\npython3 -m main after=1")
    assert commands[-1] == ["python3", "-m", "main", "after=1"]
    assert [path.name for path in keep.iterdir()] == ["file"]
    assert (keep / "file").read_text() == "old"


def test_no_network(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        got = called(tmp_path, f"exec 3<>/dev/tcp/127.0.0.1/{port} && python3 -m main connected=1")
        server.settimeout(0.1)
        with pytest.raises(TimeoutError):
            server.accept()
    assert got == []


def test_what_went_wrong_is_said(tmp_path: Path) -> None:
    got = bash_calls.calls(script(tmp_path, "set -u\necho $NOWHERE\npython3 -m main"))
    assert got.commands == []
    assert got.trouble.startswith("ended with 1: ")
    assert got.trouble.endswith("NOWHERE: unbound variable")
