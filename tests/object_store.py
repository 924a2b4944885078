"""A real S3-compatible server on a free port of 127.0.0.1 that checks signatures and rights: moto's, in a process of its own."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pipelines.port import free_port


@dataclass(frozen=True)
class ObjectStore:
    """Its address, and what a client has to set."""

    url: str
    environment: dict[str, str]


@contextmanager
def object_store(bucket: str, denied: str) -> Iterator[ObjectStore]:
    """With one bucket and one user, who may do everything but read what lies under `denied`."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    first = {"INITIAL_NO_AUTH_ACTION_COUNT": "4"}  # the four calls below
    with subprocess.Popen(command, env={**os.environ, **first}, **quiet) as process:  # type: ignore[call-overload]
        try:
            _await(process, port)
            yield ObjectStore(f"http://127.0.0.1:{port}", _user(f"http://127.0.0.1:{port}", bucket, denied))
        finally:
            process.terminate()


def _await(process: Any, port: int) -> None:
    end = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            assert process.poll() is None and time.monotonic() < end, "moto's server did not start"
            time.sleep(0.05)


def _user(url: str, bucket: str, denied: str) -> dict[str, str]:
    import boto3

    told: Any = {"endpoint_url": url, "region_name": "us-east-1", "aws_access_key_id": "first", "aws_secret_access_key": "first"}
    iam = boto3.client("iam", **told)
    iam.create_user(UserName="reader")
    made = iam.create_access_key(UserName="reader")["AccessKey"]
    allowed = {"Effect": "Allow", "Action": "s3:*", "Resource": "*"}
    but = {"Effect": "Deny", "Action": "s3:GetObject", "Resource": f"arn:aws:s3:::{bucket}/{denied}/*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [allowed, but]})
    iam.put_user_policy(UserName="reader", PolicyName="reads", PolicyDocument=policy)
    boto3.client("s3", **told).create_bucket(Bucket=bucket)
    keys = {"AWS_ACCESS_KEY_ID": made["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": made["SecretAccessKey"]}
    return keys | {"AWS_ENDPOINT_URL": url, "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true", "AWS_MAX_ATTEMPTS": "1"}
