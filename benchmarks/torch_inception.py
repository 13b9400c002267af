"""Times pytorch-fid's network for benchmarks/fid.py, which runs this module with an interpreter that has PyTorch.

python -m benchmarks.torch_inception BATCH SIZE

For each line of standard input, it prints the milliseconds of a batch.
"""

import sys
from unittest import mock

import torch
from pytorch_fid import inception

from benchmarks.timing import milliseconds


def main() -> None:
    batch, size = map(int, sys.argv[1:])
    with (
        mock.patch.object(inception, "load_state_dict_from_url"),
        mock.patch.object(torch.nn.Module, "load_state_dict"),
    ):
        network = inception.InceptionV3().eval()  # keeps its initial random weights
    images = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8)

    @torch.inference_mode()
    def call():
        network(images / 255)

    for _ in sys.stdin:
        print(min(milliseconds(call)), flush=True)


if __name__ == "__main__":
    main()
