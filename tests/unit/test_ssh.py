"""The command line that the system's ssh gets, and what its failures mean."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread, main_thread

import pytest

from batchscribe.adapters.host_access.ssh import (
    Reply,
    Ssh,
    SshOptions,
    connection_trouble,
    quote_path,
    remote_words,
)
from batchscribe.adapters.machine.clock import Interrupts
from batchscribe.core.run import host
from batchscribe.core.run.instances import Instance, InstanceState
from batchscribe.errors import (
    HostTimeoutError,
    InterruptedRunError,
    LaunchError,
    MisconfiguredError,
    PortClosedError,
)

INSTANCE = Instance(
    id="i-0box",
    state=InstanceState.RUNNING,
    public_address="203.0.113.7",
    private_address="10.0.0.7",
)


def effective(options: SshOptions, instance: Instance = INSTANCE) -> dict[str, str]:
    """The settings as ssh itself understands our command line; it connects to nobody."""
    argv = Ssh(options).argv(instance)
    shown = subprocess.run([argv[0], "-G", *argv[1:]], check=True, capture_output=True, text=True).stdout
    return dict(line.split(" ", 1) for line in shown.splitlines() if " " in line)


def test_ssh_understands_the_pin_by_id_and_nothing_is_asked(tmp_path: Path) -> None:
    shown = effective(SshOptions(known_hosts=tmp_path / "known_hosts", port=2222, user="ec2-user"))
    assert shown["hostname"] == "203.0.113.7"
    assert shown["port"] == "2222"
    assert shown["user"] == "ec2-user"
    assert shown["hostkeyalias"] == "i-0box"
    assert shown["stricthostkeychecking"] == "true"
    assert shown["userknownhostsfile"] == str(tmp_path / "known_hosts")
    assert shown["globalknownhostsfile"] == "/dev/null"
    assert shown["batchmode"] == "yes"
    assert shown["serveraliveinterval"] == "2"
    assert shown["forwardagent"] == "no"


@pytest.mark.parametrize("folder", ["plain", "with a space", "100%d", "it's"])
def test_any_ordinary_folder_can_hold_the_files(tmp_path: Path, folder: str) -> None:
    where = tmp_path / folder
    where.mkdir()
    key = where / "key"
    key.write_text("")
    shown = effective(SshOptions(known_hosts=where / "known_hosts", key=key))
    assert shown["userknownhostsfile"] == str(where / "known_hosts")
    # ssh shows this one before its own expansion.
    assert shown["identityfile"].replace("%%", "%") == str(key)
    assert shown["identitiesonly"] == "yes"


@pytest.mark.parametrize("path", ['/a"b', "/a\nb", "/${HOME}/x", "/a\\b"])
def test_a_path_that_ssh_would_misread_is_refused(path: str) -> None:
    with pytest.raises(MisconfiguredError, match="move it"):
        quote_path(Path(path))


def test_the_setting_chooses_the_address() -> None:
    addresses = {
        host: Ssh(SshOptions(known_hosts=Path("k"), host=host)).address(INSTANCE)
        for host in ("public", "private", "tunnel.example")
    }
    assert addresses == {
        "public": "203.0.113.7",
        "private": "10.0.0.7",
        "tunnel.example": "tunnel.example",
    }


@pytest.mark.parametrize("word", ["-oProxyCommand=touch PWNED", "a b", "a;b", "$(id)", ""])
def test_no_word_of_ours_can_be_taken_for_an_option(word: str) -> None:
    for options, instance in (
        (SshOptions(known_hosts=Path("k"), host=word or "-"), INSTANCE),
        (SshOptions(known_hosts=Path("k"), user=word), INSTANCE),
        (
            SshOptions(known_hosts=Path("k")),
            Instance(id=word, state=InstanceState.RUNNING, public_address="1.2.3.4"),
        ),
    ):
        with pytest.raises(MisconfiguredError, match="not a plain word"):
            Ssh(options).argv(instance)


def test_an_unknown_key_is_accepted_only_while_pinning() -> None:
    ssh = Ssh(SshOptions(known_hosts=Path("k")))
    assert "StrictHostKeyChecking=yes" in ssh.argv(INSTANCE)
    assert "StrictHostKeyChecking=accept-new" in ssh.argv(INSTANCE, pin=True)
    assert not [word for word in ssh.argv(INSTANCE, pin=True) if word.endswith("Checking=no")]


def test_remote_words_reach_the_other_side_as_they_are() -> None:
    odd = ["a b", "it's", "$HOME", "`id`", "x;y", "new\nline", ""]
    done = subprocess.run(
        ["/bin/sh", "-c", remote_words("printf", "%s\\0", *odd)], check=True, capture_output=True
    )
    assert done.stdout.decode().split("\0")[:-1] == odd


def test_a_leading_tilde_is_the_remote_home(tmp_path: Path) -> None:
    words = remote_words("printf", "%s", "~/a b")
    done = subprocess.run(
        ["/bin/sh", "-c", words], env={"HOME": str(tmp_path)}, check=True, capture_output=True, text=True
    )
    assert done.stdout == f"{tmp_path}/a b"


@pytest.mark.parametrize(
    ("stderr", "kind", "says"),
    [
        ("@ REMOTE HOST IDENTIFICATION HAS CHANGED!\nHost key verification", MisconfiguredError, "--repin"),
        ("No ED25519 host key is known for i-0box\nHost key verification", MisconfiguredError, "gpu setup"),
        ("ubuntu@1.2.3.4: Permission denied (publickey).", MisconfiguredError, "GPU_SSH_KEY_PATH"),
        ("command-line: line 0: Bad configuration option: nonsense", MisconfiguredError, "ssh/config"),
        ("ssh: connect to host 1.2.3.4 port 22: Connection refused", PortClosedError, "refused"),
        ("ssh: connect to host 1.2.3.4 port 22: Connection timed out", HostTimeoutError, "timed out"),
        ("Connection timed out during banner exchange", HostTimeoutError, "banner"),
        ("Permissions 0644 for '/a b.pem' are too open.\nubuntu@h: Permission denied", MisconfiguredError,
         "UNPROTECTED PRIVATE KEY FILE): chmod 600 /a b.pem"),
        ("no such identity: /k.pem: No such file or directory\nubuntu@h: Permission denied",
         MisconfiguredError, "no such identity: /k.pem"),
        ("kex_exchange_identification: Connection closed by remote host", LaunchError, "closed"),
        ("", LaunchError, "255"),
    ],
)  # fmt: skip
def test_what_a_failed_connection_means(stderr: str, kind: type[Exception], says: str) -> None:
    trouble = connection_trouble(Reply(255, b"", stderr), INSTANCE)
    assert type(trouble) is kind
    assert says in str(trouble)
    assert "\n" not in str(trouble)


def test_a_failed_connection_names_its_address_and_ssh_s_reason() -> None:
    refused = Reply(255, b"", "ssh: connect to host 1.2.3.4 port 22: Connection refused", "1.2.3.4:22")
    assert str(connection_trouble(refused, INSTANCE)) == "ssh to 1.2.3.4:22: connection refused"
    late = connection_trouble(Reply(None, b"", "", "1.2.3.4:22"), INSTANCE)
    assert str(late) == "ssh to 1.2.3.4:22: no answer in time"
    assert isinstance(late, HostTimeoutError)
    hints = [kind for kind in (HostTimeoutError, PortClosedError, LaunchError) if "security" in kind.fix]
    assert hints == [HostTimeoutError]


def test_a_command_that_failed_over_there_is_no_trouble_with_the_connection() -> None:
    assert connection_trouble(Reply(1, b"", "Permission denied"), INSTANCE) is None


def test_the_complaint_of_the_other_side_cannot_play_with_the_terminal() -> None:
    assert Reply(1, b"", "fine\n\x1b[2Jgone\x07 \u202eback\n").complaint == "?[2Jgone? ?back"


def test_without_a_last_word_nothing_is_known() -> None:
    for output in (
        b"",
        b"no json",
        b"{}",
        b'{"boxes": 1}',
        b"[1]",
        b'{"box": "x"}',
        b'{"box":1}\nlate noise',
    ):
        assert host.decode_reply(output) is None
    found = host.decode_reply(b'Welcome!\n{"box": 1, "release": "1.2.3"}\n\n')
    assert found is not None
    assert found.release == "1.2.3"


def _terminate_when(started: Path) -> None:
    """Sends SIGTERM to the main thread, which waits for ssh, as soon as ssh runs."""
    for _ in range(400):
        if started.exists() and started.read_text():
            break
        time.sleep(0.05)
    signal.pthread_kill(main_thread().ident or 0, signal.SIGTERM)


@pytest.mark.timeout(60)
def test_a_signal_ends_a_waiting_ssh_at_once(tmp_path: Path) -> None:
    started = tmp_path / "started"
    program = tmp_path / "ssh"
    # It has read its input, so the call waits for its end and no longer starts it.
    program.write_text(f"#!/bin/sh\ncat > /dev/null\necho $$ > {started}\nexec sleep 60\n")
    program.chmod(0o700)
    ssh = Ssh(SshOptions(known_hosts=tmp_path / "k", program=str(program)))
    Thread(target=_terminate_when, args=[started], daemon=True).start()
    with Interrupts(), pytest.raises(InterruptedRunError):
        ssh.run(INSTANCE, ["true"], timeout=600.0)
    assert not Path(f"/proc/{started.read_text().strip()}").exists()


def test_no_ssh_on_this_machine_is_something_to_install(tmp_path: Path) -> None:
    ssh = Ssh(SshOptions(known_hosts=tmp_path / "k", program=str(tmp_path / "nowhere")))
    with pytest.raises(MisconfiguredError, match="OpenSSH"):
        ssh.run(INSTANCE, ["true"], timeout=5.0)


def test_much_output_does_not_block(tmp_path: Path) -> None:
    program = tmp_path / "ssh"
    program.write_text(f"#!/bin/sh\nexec {sys.executable} -c 'print(\"x\" * 1000000)'\n")
    program.chmod(0o700)
    reply = Ssh(SshOptions(known_hosts=tmp_path / "k", program=str(program))).run(
        INSTANCE, ["true"], b"y" * 1_000_000, timeout=60.0
    )
    assert (reply.code, len(reply.stdout)) == (0, 1_000_001)
