"""LeNet-300-100 and the Caffe LeNet-5 (20-50-500), as pruned by Han et al. (NIPS 2015; ICLR 2016)."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn


def lenet_300_100(num_classes: int = 10) -> nn.Sequential:
    """784-300-100-10 on (N, 1, 28, 28): 266,610 params, 266,200 MACs."""
    return nn.Sequential(
        OrderedDict(
            flatten=nn.Flatten(),
            ip1=nn.Linear(784, 300),
            relu1=nn.ReLU(),
            ip2=nn.Linear(300, 100),
            relu2=nn.ReLU(),
            ip3=nn.Linear(100, num_classes),
        )
    )


def lenet5(num_classes: int = 10) -> nn.Sequential:
    """20c5 - pool - 50c5 - pool - 500 - 10 on (N, 1, 28, 28): 431,080 params, 2,293,000 MACs."""
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, 20, 5),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(20, 50, 5),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            ip1=nn.Linear(800, 500),
            relu1=nn.ReLU(),
            ip2=nn.Linear(500, num_classes),
        )
    )
