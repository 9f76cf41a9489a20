"""Stands for a program's process in front of its fork: `forked_program.py ADDRESS ARGUMENTS`.

Streams, folder and environment of the fork are this process's, its exit code becomes this one's. Imports
next to nothing: a host of a test starts several processes for each run.
"""

import json
import os
import socket
import sys

with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as channel:
    channel.connect(bytes.fromhex(sys.argv[1]))
    asked = {"home": os.getcwd(), "argv": sys.argv[2:], "environment": dict(os.environ)}  # noqa: PTH109
    socket.send_fds(channel, [json.dumps(asked).encode()], [0, 1, 2])
    channel.recv(100)
    sys.exit(int(channel.recv(100)))
