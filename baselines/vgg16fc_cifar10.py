"""VGG16 with two fully connected layers of 4,096 units on CIFAR-10: 33,646,666 params, 56 % of them fully connected.

The net of Table 4 of Xu, Li and Yuan (J. Zhejiang Univ. 2023, 57(3): 486-494), whose text does not say how large its
fully connected part is. Inferred from the shares of the parameters that the table prints as gone, with VGG16's usual
14,710,464 convolution weights and N weights in all:

- Their search over the convolutions alone removes 28.08 %, with the fully connected part thresholded 83.33 %: that part
  loses 55.25 % of N, and holds more. With 512-512-10 behind the convolutions it holds 1.8 %, with 512-1024-1024-10
  9.7 %, with 512-4096-10 12.7 %: all too small. With 7x7x512-4096-4096-10 the convolutions hold 11 %, less than 28.08.
- The threshold on the whole net removes 99.05 %, so 43.80 % of N goes beside the 55.25: the convolutions hold at least
  43.80 %, at most 44.75. The fully connected part then has between 18.2 and 18.9 million weights. 512-4096-4096-10 has
  18,915,328 (the convolutions hold 43.75 %): 0.05 points off, which a second search of theirs may explain.
  No other usual one is as near: 2x2x512-4096-4096-10 has 25.2 million, 512-4096-4096-1000 23.0.
- In this net the search leaves 35.8 % of the convolution weights, and the threshold 1.8 % of the fully connected ones.

What does not fit: the rows of L1 (64.08 %) and of GAL-0.05 (77.46 %) belong to VGG16 with a small fully connected part.
L1's published structure removes 64.01 % of the weights with 512-512-10, 64.28 % with 512-10, and 31 % of this net's.
The entropy row (43.00 %) decides nothing. Not in the text at hand: the dense accuracy, batch normalisation (behind the
convolutions here), dropout (0.5 here), and pooling (an average of the last 2x2 map here, as in ``vgg16_cifar10``). The
fully connected layers begin with a normal distribution, which three standard deviations suppose: torch's own, uniform,
has no magnitude beyond that threshold, so that a short training would leave the first of them nearly empty.
"""

from functools import partial

from baselines.base import Baseline, Recipe
from baselines.data import stored
from baselines.models.vgg import FC, VGG, VGG16

BASELINE = Baseline(
    name="vgg16fc_cifar10",
    net=lambda classes: VGG(VGG16, classes, hidden=FC),
    student=lambda classes: VGG(VGG16, classes, width=0.5, hidden=FC),
    data=partial(stored, "cifar10"),
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    crop=4,
    flip=True,
    train={
        "paper": Recipe(epochs=160, lr=0.05, nesterov=False, schedule="step", warmup=0.01),
        "short": Recipe(epochs=30, lr=0.05, warmup=0.05, sizes=((0.6, 16), (0.85, 24))),
    },
    finetune=Recipe(epochs=2, lr=0.01),
    stages=tuple(f"features.{i}" for i in (6, 13, 23, 33)),
    siblings={"half": lambda classes: VGG(VGG16, classes, width=0.5, hidden=FC)},
)
