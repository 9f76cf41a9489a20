"""The stack of the whole, made in the emulator; a tick works on its instance, and its worker is played."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from batchscribe import __version__
from batchscribe.core import keys
from batchscribe.core.run.host import InstanceRecord
from batchscribe.core.text.transcripts import encode
from support.emulated import Aws, new_case
from support.s3 import aws_client
from support.set_up_hosts import pin_host_key

pytestmark = pytest.mark.e2e


def test_a_tick_works_on_what_the_template_made(aws: Aws, tmp_path: Path) -> None:
    from support.stacks import complete_moto, template  # moto's models are slow to import

    case = new_case(aws, tmp_path)
    complete_moto()
    stacks = aws_client(aws.endpoint, "cloudformation")
    given = {"Bucket": case.bucket, "GpuType": "g4dn.xlarge"}
    stacks.create_stack(
        StackName="whole",
        TemplateBody=template("batchscribe.yaml"),
        Capabilities=["CAPABILITY_IAM"],
        Parameters=[{"ParameterKey": name, "ParameterValue": value} for name, value in given.items()],
    )
    (made,) = stacks.describe_stacks(StackName="whole")["Stacks"]
    outputs = {each["OutputKey"]: each["OutputValue"] for each in made["Outputs"]}
    asked = aws.ec2.describe_instance_attribute(InstanceId=outputs["SchedulerId"], Attribute="userData")
    script = base64.b64decode(asked["UserData"]["Value"]).decode()
    (written,) = re.findall(r"cat > \.env <<'END'\n(.*?)END\n", script, re.DOTALL)
    settings = dict(line.split("=", 1) for line in written.splitlines())
    # The played worker needs no ssh, and has its manifest and its progress beside the audio.
    settings |= {"GPU_SSH_KEY_PATH": "", "BATCH_CONTROL": ""}
    # The host of the emulator has no first boot that stops it.
    aws.ec2.stop_instances(InstanceIds=[outputs["InstanceId"]])

    case = replace(case, instance=outputs["InstanceId"])
    record = InstanceRecord(
        instance=case.instance, release=__version__, at=datetime.now(UTC), boots=True, shows_tags=True
    )
    case.put(f"audio-sessions/{keys.instance(case.instance)}", encode(record))
    pin_host_key(tmp_path, case.instance)
    case.put("audio-sessions/s/chunk-001.wav", b"played, not heard")
    ended = case.tick(**settings)
    assert ended.code == 0, ended
    (run,) = ended.document["runs"]
    assert (run["status"], run["success"]) == ("completed", True)
    assert case.described()["State"]["Name"] == "stopped"
    assert case.orders == []
    assert "audio-sessions/s/transcription-chunk-001.json" in case.objects()
