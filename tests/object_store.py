"""A real S3 server on this machine, of a test's own."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

SECRETS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


@dataclass(frozen=True)
class ObjectStore:
    """An S3 server with one empty bucket; `environment` is what clients need to find it."""

    endpoint: str
    bucket: str = "corpora"

    @property
    def address(self) -> str:
        return f"s3://{self.bucket}"

    @property
    def environment(self) -> dict[str, str]:
        # The first is streaming's own name for it, the second that of Amazon's libraries.
        return SECRETS | {"S3_ENDPOINT_URL": self.endpoint, "AWS_ENDPOINT_URL": self.endpoint}

    @property
    def client(self) -> Any:
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=SECRETS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=SECRETS["AWS_SECRET_ACCESS_KEY"],
            region_name=SECRETS["AWS_DEFAULT_REGION"],
        )

    def upload(self, folder: os.PathLike[str], prefix: str) -> None:
        """Every file below a folder, under the same names below `prefix`."""
        for root, _, names in os.walk(folder):
            for name in names:
                path = os.path.join(root, name)
                self.client.upload_file(path, self.bucket, f"{prefix}/{os.path.relpath(path, folder)}")


@contextmanager
def served(host: str = "127.0.0.1") -> Iterator[ObjectStore]:
    """An S3 server for as long as the context lasts."""
    from moto.server import ThreadedMotoServer  # here, so that tests without a store need neither it nor its imports

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for each request
    server = ThreadedMotoServer(host, 0, verbose=False)
    server.start()
    try:
        store = ObjectStore("http://{}:{}".format(*server.get_host_and_port()))
        store.client.create_bucket(Bucket=store.bucket)
        yield store
    finally:
        server.stop()
