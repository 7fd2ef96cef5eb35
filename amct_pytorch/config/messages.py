"""Message classes of the protobuf text formats, read from descriptor sets beside their .proto.

They live in a pool of their own: another toolkit in the same process may have registered the same
packages in protobuf's default pool, and two different files of one name are an error there.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

FOLDER = Path(__file__).parent / "proto"


@functools.cache
def message_class(stem: str, name: str) -> Any:
    """The class of message `name` in `proto/<stem>.proto`.

    >>> message = message_class("calibration_config_pytorch", "AMCTPytorchProto.AMCTConfig")()
    >>> message.batch_num
    1
    """
    pool = descriptor_pool.DescriptorPool()
    described = (FOLDER / f"{stem}.desc").read_bytes()
    for file in descriptor_pb2.FileDescriptorSet.FromString(described).file:
        pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(name))
