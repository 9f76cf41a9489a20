"""`.env` as `init` writes it reads back as the same values."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchscribe.adapters.machine.files import list_key_files
from batchscribe.core.env_text import GROUPS, SUGGESTED, quote_value, render_env
from batchscribe.env_file import read_env_file, write_env_file
from batchscribe.errors import MisconfiguredError
from batchscribe.settings import KNOWN, load

VALUES = {
    "BATCH_SOURCE": "s3://recordings/audio sessions",
    "BATCH_GUARD_ROLE_ARN": "arn:aws:iam::123456789012:role/batchscribe-guard-StopRole-1",
    "BATCH_SMTP_URL": "smtps://me:it's#$HOME\\n@mail.example:465",
    "GPU_INSTANCE_ID": "i-0123456789abcdef0",
    "BATCH_REPORTS_DIR": "reports",
}


def test_values_read_back_in_their_groups(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    assert write_env_file(path, render_env(VALUES)) is None
    assert read_env_file(path) == VALUES
    text = path.read_text()
    assert (
        text.index("BATCH_SOURCE") < text.index("GPU_INSTANCE_ID") < text.index("# Others\nBATCH_REPORTS_DIR")
    )
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load({}, folder=tmp_path).smtp_url == VALUES["BATCH_SMTP_URL"]


@given(st.text(st.characters(categories=["L", "N", "P", "S", "Zs"]), min_size=1).map(str.strip).filter(bool))
def test_any_printable_value_reads_back(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.mktemp("values") / ".env"
    path.write_text(f"BATCH_SOURCE={quote_value(text)}  # a remark\n", encoding="utf-8")
    assert read_env_file(path) == {"BATCH_SOURCE": text}


def test_suggestions_are_comments_and_would_be_valid(tmp_path: Path) -> None:
    text = render_env({"BATCH_THRESHOLD": "7"})
    assert "BATCH_THRESHOLD=7\n" in text
    assert "# BATCH_THRESHOLD" not in text
    assert "# BATCH_MAX_WAIT_HOURS=24  #" in text
    assert "# BATCH_POLICY=threshold  #" in text
    assert "# BATCH_HOURS=mon-fri" in text
    assert {name for names in GROUPS.values() for name in names} <= KNOWN
    load({}, folder=tmp_path, flags={name: example for name, (example, _) in SUGGESTED.items()})


def test_an_existing_file_is_kept(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_text("BATCH_THRESHOLD=3\n")
    with pytest.raises(
        MisconfiguredError, match=r"exists, nothing was changed: --force keeps it as \.env\.old"
    ):
        write_env_file(path, "")
    assert path.read_text() == "BATCH_THRESHOLD=3\n"
    assert write_env_file(path, "BATCH_THRESHOLD=4\n", force=True) == tmp_path / ".env.old"
    assert (tmp_path / ".env.old").read_text() == "BATCH_THRESHOLD=3\n"
    assert read_env_file(path) == {"BATCH_THRESHOLD": "4"}


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(MisconfiguredError, match=r"cannot be written \(No such file or directory\)"):
        write_env_file(tmp_path / "none" / ".env", "")


def make_key(path: Path, mode: int = 0o600) -> Path:
    path.write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nx\n")
    path.chmod(mode)
    return path


def test_private_keys_are_found_among_other_files(tmp_path: Path) -> None:
    (tmp_path / "known_hosts").write_text("h ssh-ed25519 AAAA\n")
    (tmp_path / "id.pub").write_text("ssh-ed25519 AAAA\n")
    key = make_key(tmp_path / "gpu.pem")
    assert list_key_files(tmp_path) == (key,)
    assert list_key_files(tmp_path / "none") == ()
