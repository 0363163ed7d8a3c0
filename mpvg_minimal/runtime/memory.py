"""What cannot fit into a device's memory is refused before anything is allocated."""
import os

import torch

from .errors import UserError


def refuse_more_than_fits(needed: float, device: torch.device, what: str) -> None:
    """UserError if `what`, for instance "--batch-size 9", needs more bytes than the device has in all."""
    there = torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else (
        os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    if needed > there:
        raise UserError(f"{what} needs at least {needed / 1e9:,.1f} GB, but {device} has {there / 1e9:,.1f} GB in all: "
                        "give a smaller number")
