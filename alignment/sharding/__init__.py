"""How one model is spread over processes: whole on each (one process, DDP), or sharded (FSDP2, DeepSpeed ZeRO)."""

from alignment.sharding.base import Sharding
from alignment.sharding.launch import Launch, check_processes, check_rest, read_launch
from alignment.sharding.make import make_sharding

__all__ = ["Launch", "Sharding", "check_processes", "check_rest", "make_sharding", "read_launch"]
