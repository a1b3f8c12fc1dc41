"""The processes of one launch (`torchrun`, `accelerate launch`): they agree before the work and meet after it."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from tl_vzero.errors import InputError, TLVZeroError

VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
LONGEST_RUN = timedelta(days=60)  # how long a rank waits for the slowest one


@dataclass
class Ranks:
    """This process among those of its launch; alone, it is rank 0 of 1."""

    rank: int
    world: int
    group: Any = None
    owns_group: bool = False

    def agree(self, settle: Callable[[], Any]) -> Any:
        """What rank 0 settles, as plain JSON data, told to all; its error is raised by all."""
        if self.world == 1:
            return settle()
        told: dict[str, Any] = {}
        failed: BaseException | None = None
        if self.rank == 0:
            try:
                told = {"settled": settle()}
            except BaseException as error:
                failed, told = error, {"error": str(error) or type(error).__name__}
        # Not broadcast_object_list: it pickles.
        told = json.loads(self._broadcast(json.dumps(told).encode()))
        if failed is not None:
            raise failed
        if "error" in told:
            raise InputError(f"rank 0 refused: {told['error']}")
        return told["settled"]

    def meet(self, work: Callable[[], object] = lambda: None) -> bool:
        """Do some work in every rank and wait until all have done it; False where one of them is gone.

        Raises this rank's error, or TLVZeroError where another rank has one.
        """
        failed: BaseException | None = None
        try:
            work()
        except BaseException as error:
            failed = error
        here = self._failures(failed is not None)
        if failed is not None:
            raise failed
        if here:
            raise TLVZeroError("another process of this launch ended with an error, which it tells: this one ends too")
        return here is not None

    def _failures(self, failed: bool) -> int | None:
        """How many ranks failed; None where one of them is gone."""
        count = torch.tensor([int(failed)])
        if self.world > 1:
            try:
                dist.all_reduce(count, group=self.group)
            except RuntimeError:
                return None
        return int(count.item())

    def leave(self) -> None:
        """End the group that this run began."""
        if self.owns_group and dist.is_initialized():
            dist.destroy_process_group()

    def _broadcast(self, content: bytes) -> bytes:
        """Bytes of rank 0, to all."""
        size = torch.tensor([len(content)])
        dist.broadcast(size, src=0, group=self.group)
        held = torch.zeros(int(size.item()), dtype=torch.uint8)
        if self.rank == 0:
            held.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
        dist.broadcast(held, src=0, group=self.group)
        return bytes(held.tolist())


def ranks_of_launch() -> Ranks:
    """The ranks that the launcher's environment variables describe, joined by gloo.

    Raises InputError where only some of the variables are set, TLVZeroError where the ranks cannot be joined.
    """
    if dist.is_available() and dist.is_initialized():
        # The caller's own group may be one of GPUs, which moves no bytes of ours.
        return Ranks(dist.get_rank(), dist.get_world_size(), dist.new_group(backend="gloo"))
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return Ranks(0, 1)
    missing = [name for name in VARIABLES if not os.environ.get(name)]
    if missing:
        raise InputError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, and {', '.join(missing)} is not set: expected a start by "
            "torchrun or accelerate launch, which set all, or WORLD_SIZE unset"
        )
    try:
        dist.init_process_group("gloo", timeout=LONGEST_RUN)
    except (RuntimeError, ValueError) as error:
        raise TLVZeroError(f"the processes of this launch cannot be joined: {error}") from error
    return Ranks(dist.get_rank(), dist.get_world_size(), owns_group=True)
