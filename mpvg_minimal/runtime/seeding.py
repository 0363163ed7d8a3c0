"""Every random draw is a function of where it happens: (seed, epoch, step) or (seed, epoch, image).

The usual way keeps one stream of random numbers, so what an image looks like depends on everything drawn before it: the
number of workers, an evaluation in between, a restart. Here nothing is kept. The order of an epoch comes from (seed,
epoch), an image's augmentation from (seed, epoch, index), a step's dropout and mixing from (seed, epoch, step). So
workers cannot matter, and a resumed run needs no generator's state to go on bit for bit.
"""
import json
from contextlib import contextmanager
from hashlib import blake2b

import torch


def seed_of(*key: str | int) -> int:
    """A 63-bit seed; keys that differ anywhere give unrelated seeds. Begin a key with a word for its purpose.

    The key is written as JSON first, so ("a,b",) and ("a", "b"), or 1 and "1", are different keys.
    """
    digest = blake2b(json.dumps(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def seed_device(device: torch.device, *key: str | int) -> None:
    """Seed the CPU's generator and the device's own, as `torch.manual_seed` does, but no other device's."""
    seed = seed_of(*key)
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        torch.cuda.default_generators[index].manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


def generator(*key: str | int) -> torch.Generator:
    """A CPU generator of its own for this key."""
    return torch.Generator().manual_seed(seed_of(*key))


@contextmanager
def seeded(*key: str | int):
    """Inside, torch's CPU generator is at this key's start; afterwards it is where it was.

    torchvision's transforms draw from that generator and take no other. Not `torch.manual_seed`, which
    would move the generators of the GPUs too and not put them back.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_of(*key))
        yield
