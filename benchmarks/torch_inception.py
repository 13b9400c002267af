"""pytorch-fid's network, to compare with; run by fid.py, which it answers.

python torch_inception.py BATCH SIZE. For each line of standard input it prints the milliseconds of one batch.
"""

import sys
from unittest import mock

import torch
from pytorch_fid import inception
from timing import milliseconds


def main() -> None:
    batch, size = map(int, sys.argv[1:])
    with (
        mock.patch.object(inception, "load_state_dict_from_url"),
        mock.patch.object(torch.nn.Module, "load_state_dict"),
    ):
        network = inception.InceptionV3().eval()  # with the weights that it was initialised with
    images = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8)

    @torch.inference_mode()
    def call():
        network(images / 255)

    for _ in sys.stdin:
        print(min(milliseconds(call)), flush=True)


if __name__ == "__main__":
    main()
