"""The comparison tables that papers and surveys print, row by row and digit by digit; ``repro/surveys.py`` shows them.

A table is a text block. ``@ CITATION`` opens a group of rows from one printed table; a row is

    label | one cell per column | how the figures were verified | method | structure

The cells are as printed: ``-`` is not printed, ``2/MAC`` behind a count says that a multiplication and an addition are
two operations. ``verified`` is a list of keys of ``VERIFIED`` or plain words. ``method`` is a name in the registry (or
the name that it would have there), with ``:RECIPE`` where the accuracy alone does not find the recipe; ``structure`` is
a row of ``repro/structures.py``. A group's row of the method ``dense`` is the net that its other rows start from.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property


@dataclass(frozen=True)
class Column:
    """A printed column: what it is in a ``Reported`` row, its name and unit, and whether higher is better.

    ``higher`` None: neither; ``net``: the baseline that the whole column is about, empty where the suite has none.
    """

    field: str
    name: str
    unit: str = ""
    higher: bool | None = None
    net: str | None = None

    @property
    def title(self) -> str:
        """Name, unit, and an arrow in the direction that is better."""
        arrow = {True: "↑", False: "↓", None: ""}[self.higher]
        return " ".join(filter(None, (self.name, self.unit and f"({self.unit})", arrow)))


@dataclass(frozen=True)
class Row:
    """A printed row: ``cells`` in the order of the survey's columns; ``dense`` is the row of the net it starts from."""

    label: str
    cells: tuple[str, ...]
    source: str
    verified: str
    method: str
    structure: str = ""
    dense: Row | None = None


@dataclass(frozen=True)
class Survey:
    """A printed comparison: the question it answers, the baselines that it is about, its columns and its rows.

    ``notes`` are what is to be said of a row (by its label; "": of the whole table) and cannot be computed. ``layers``:
    the rows are layers of this baseline, as a run of the method stores them, and their total
    (``repro/layer_tables.py``); empty: the rows are nets.
    """

    slug: str
    title: str
    question: str
    nets: tuple[str, ...]
    columns: tuple[Column, ...]
    text: str
    notes: dict[str, str] = field(default_factory=dict)
    layers: str = ""

    @property
    def about(self) -> str:
        """The question, and what is to be said of the whole table."""
        return " ".join(filter(None, (self.question, self.notes.get(""))))

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """The rows of ``text``, in its order."""
        found: list[Row] = []
        source, dense = "", None
        for line in filter(None, map(str.strip, self.text.splitlines())):
            if line.startswith("@"):
                source, dense = line[1:].strip(), None
                continue
            label, *cells = (cell.strip() for cell in line.split("|"))
            values, tail = tuple(cells[: len(self.columns)]), cells[len(self.columns) :]
            row = Row(label, values, source, _verified(tail[0]), *tail[1:], dense=dense)
            dense = row if row.method == "dense" and dense is None else dense
            found.append(row)
        return tuple(found)


def _verified(keys: str) -> str:
    return "; ".join(VERIFIED.get(key.strip(), key.strip()) for key in keys.split(","))


def _columns(fields: str) -> tuple[Column, ...]:
    return tuple(Column(name, *COLUMNS[name]) for name in fields.split())


def _pairs(pairs: str, nets: dict[str, str]) -> tuple[Column, ...]:
    """A column of top-1 for every teacher > student pair; ``nets``: the pairs that the suite has."""
    return tuple(Column("top1", pair.replace(">", " → "), "%", True, nets.get(pair, "")) for pair in pairs.split())


COLUMNS: dict[str, tuple[str, str, bool | None]] = {
    "net": ("net", "", None),
    "bits": ("weight/activation bits", "", None),
    "base_top1": ("top-1 of the dense net", "%", None),
    "base_top5": ("top-5 of the dense net", "%", None),
    "top1": ("top-1", "%", True),
    "top5": ("top-5", "%", True),
    "error": ("top-1 error", "%", False),
    "delta": ("Δ top-1", "points", True),
    "params": ("params", "", False),
    "params_reduction": ("params reduction", "%", True),
    "macs": ("MACs", "", False),
    "macs_reduction": ("MACs reduction", "%", True),
    "channels": ("channels", "", False),
    "channels_reduction": ("channels reduction", "%", True),
    "weights": ("weights", "", None),
    "density": ("weights left (P)", "%", False),
    "weight_bits_pq": ("weight bits (P+Q)", "", False),
    "weight_bits_pqh": ("weight bits (P+Q+H)", "", False),
    "index_bits_pq": ("index bits (P+Q)", "", False),
    "index_bits_pqh": ("index bits (P+Q+H)", "", False),
    "rate_pq": ("size (P+Q)", "%", False),
    "rate_pqh": ("size (P+Q+H)", "%", False),
}
STORED = "weights density weight_bits_pq weight_bits_pqh index_bits_pq index_bits_pqh rate_pq rate_pqh"
NETS = {  # nets as tables of mixed nets name them
    "BNN ConvNet": ("bnn_convnet_cifar10",),
    "VGG-7": ("bnn_convnet_cifar10",),
    "VGG-small": ("vggsmall_cifar10",),
}
VERIFIED = {
    "D": "sizes recounted from the structure",
    "M": "from memory, not read again",
    "paper": "the paper's text",
    "abstract": "the paper's abstract",
    "abcp": "README of lmbxmu/ABCPruner",
    "adder": "README of huawei-noah/AdderNet",
    "bnas": "README of gistvision/bnas",
    "bnn": "README of MatthieuCourbariaux/BinaryNet",
    "coring": "README of pvtien96/CORING",
    "cp": "README of ethanhe42/channel-pruning",
    "copies": "two copies of the paper's full text, cell by cell",
    "dcff": "the dense net in issue 1 of lmbxmu/DCFF",
    "distiller": "README of AMC in IntelLabs/distiller",
    "dnal": "README of QingbeiGuo/DNAL",
    "effnet": "README of EfficientNet in tensorflow/tpu",
    "fq": "Focused Quantization (NeurIPS 2019), Table 2",
    "gal": "an older README of ShaohuiLin/GAL",
    "ghost": "a translated copy of the GhostNet paper",
    "grid": "the copy of printed tables in JJGO/shrinkbench",
    "hrank": "README of lmbxmu/HRank",
    "igc": "README of hellozting/InterleavedGroupConvolutions",
    "keras": "the Applications table of keras.io",
    "light": "a survey of lightweight deep learning (2024), Table 1",
    "lowbit": "a third party's summary of low-bit networks (2019)",
    "megvii": "README of megvii-model/ShuffleNet-Series",
    "meta": "README of liuzechun/MetaPruning",
    "mfmi": "README of MFMI",
    "mint": "the result tables of MINT",
    "notes": "notes on the paper that copy the figures",
    "oicsr": "README of dsfour/OICSR",
    "pycls": "model zoo of facebookresearch/pycls",
    "quoted": "later papers that quote it",
    "repdistiller": "README of HobbitLong/RepDistiller",
    "rethinking": "README of Eric-mingjie/rethinking-network-pruning",
    "senet": "README of hujie-frank/SENet",
    "slac": "the SLAC-ANN paper, Tables 1 and 2",
    "swp": "README of fxmeng/Pruning-Filter-in-Filter",
    "thinet": "README of Roll920/ThiNet_Code",
    "tp": "README of VainF/Torch-Pruning",
    "tp_base": "the dense net in the README of VainF/Torch-Pruning",
    "tq": "Transform Quantization, which quotes it",
}
PRUNED = "base_top1 top1 delta params params_reduction macs macs_reduction"
KD_SAME = "wrn40-2>wrn16-2 wrn40-2>wrn40-1 r56>r20 r110>r20 r110>r32 r32x4>r8x4 vgg13>vgg8"
KD_OTHER = "vgg13>MobileNetV2 R50>MobileNetV2 R50>vgg8 r32x4>ShuffleV1 r32x4>ShuffleV2 wrn40-2>ShuffleV1"
KD_NOTE = "Every method but KD and the student runs without the term of KD in this table."
RERUN = "Not an accuracy of this method's own paper: a run of the survey's authors, it seems."

VGG16_TABLES = (
    Survey(
        "vgg16_cifar10_combination", "VGG-16 on CIFAR-10: combination pruning",
        "What does a search over the convolutions with a threshold for the fully connected layers gain over either?",
        ("vgg16fc_cifar10", "vgg16_cifar10"), _columns("params_reduction delta"),
        """
        @ Xu, Li, Yuan, J. Zhejiang Univ. (Eng. Sci.) 57(3), 2023, Table 4
        RL (DDPG) weight pruning, convolutions only | 28.08 | -0.75 | paper | combination_pruning
        3σ threshold, whole net | 99.05 | -6.11 | paper | combination_pruning
        GAL-0.05 | 77.46 | -6.86 | paper | gal
        L1 | 64.08 | -7.13 | paper | l1_filter
        Entropy-based | 43.00 | -2.06 | paper | entropy
        Combination (DDPG on convolutions, 3σ on FC) | 83.33 | -1.55 | paper | combination_pruning
        """, {"GAL-0.05": RERUN, "L1": RERUN},
    ),
    Survey(
        "vgg16_cifar10_hrank", "VGG-16 on CIFAR-10: the comparison of GAL and HRank",
        "Which criterion keeps the accuracy of a VGG-16 with one hidden layer of 512 units at which size?",
        ("vgg16_cifar10",), _columns("top1 delta params params_reduction macs macs_reduction"),
        """
        @ GAL (CVPR 2019) and HRank (CVPR 2020), VGG-16 on CIFAR-10
        VGG-16 | 93.96 | - | 14.98M | - | 313.73M | - | coring,D | dense | vgg16_cifar10_512fc
        L1 | 93.40 | - | 5.40M | 64.0 | 206.00M | 34.3 | coring,D | l1_filter | vgg16_cifar10_pruned_A
        SSS | 93.02 | - | 3.93M | 73.8 | 183.13M | 41.6 | coring | sss
        Zhao et al. (variational) | 93.18 | - | 3.92M | 73.3 | 190.00M | 39.1 | coring | variational
        GAL-0.05, not fine-tuned | 92.03 | - | 3.36M | 77.6 | 189.49M | 39.6 | coring | gal
        GAL-0.05 | 93.77 | - | 3.36M | 77.6 | 189.49M | 39.6 | mint | gal
        GAL-0.1, not fine-tuned | 90.73 | - | 2.67M | 82.2 | 171.89M | 45.2 | coring | gal
        GAL-0.1 | 93.42 | - | 2.67M | 82.2 | 171.89M | 45.2 | mint,dnal | gal
        HRank-1 | 93.43 | - | 2.51M | 82.9 | 145.61M | 53.5 | coring | hrank
        HRank-2 | 92.34 | - | 2.64M | 82.1 | 108.61M | 65.3 | coring,hrank | hrank | hrank_vgg16_by_rule
        HRank-3 | 91.23 | - | 1.78M | 92.0 | 73.70M | 76.5 | coring | hrank
        """,
        {"GAL-0.05, not fine-tuned": "HRank quotes this row, not the fine-tuned one, beside its own fine-tuned rows.",
         "GAL-0.1, not fine-tuned": "HRank quotes this row, not the fine-tuned one, beside its own fine-tuned rows.",
         "HRank-2": "The released rates give 4.81M params and 116.63M MACs by the authors' own count, which takes the "
                    "next layer's inputs for there; 1.35M and 43.23M with the channels really gone."},
    ),
    Survey(
        "vgg16_cifar10_abcpruner", "VGG-16 on CIFAR-10: ABCPruner",
        "What does a bee colony find when it searches the number of channels of each layer?",
        ("vgg16_cifar10",),
        _columns("base_top1 top1 params params_reduction macs macs_reduction channels channels_reduction"),
        """
        @ ABCPruner (IJCAI 2020), VGG-16 on CIFAR-10
        ABCPruner-80% | 93.02 | 93.08 | 1.67M | 88.68 | 82.81M | 73.68 | 1639/4224 | 61.20 | abcp,dcff | abcpruner
        """,
        {"ABCPruner-80%": "Its VGG-16 has a single linear layer behind the convolutions."},
    ),
    Survey(
        "vgg16_cifar10_l1", "VGG-16 on CIFAR-10: L1-norm filter pruning",
        "Does the pruned net keep its accuracy, and does it need the weights that it inherits?",
        ("vgg16_cifar10",), _columns("error params params_reduction macs macs_reduction"),
        """
        @ Pruning Filters for Efficient ConvNets (ICLR 2017), Table 1
        VGG-16 | 6.75 | 1.5e7 | - | 3.13e8 | - | paper,D | dense | vgg16_cifar10_512fc
        VGG-16-pruned-A | 6.60 | 5.4e6 | 64.0 | 2.06e8 | 34.2 | paper,D | l1_filter | vgg16_cifar10_pruned_A
        VGG-16-pruned-A, scratch-train | 6.88 | - | - | - | - | paper | scratch
        """,
    ),
    Survey(
        "vgg16_cifar10_others", "VGG-16 on CIFAR-10: other papers, each against its own dense net",
        "What do other papers print for this net?",
        ("vgg16_cifar10",), _columns(PRUNED),
        """
        @ Pruning Filter in Filter (SWP, NeurIPS 2020), comparison on CIFAR-10
        L1 (in SWP) | - | - | +0.15 | - | 64 | - | 34.3 | swp | l1_filter
        ThiNet (in SWP) | - | - | -2.49 | - | 63.95 | - | 64.02 | swp | thinet
        SFP (in SWP) | - | - | -1.17 | - | 63.95 | - | 63.91 | swp | sfp
        SSS (in SWP) | - | - | -0.23 | - | 73.8 | - | 41.6 | swp | sss
        GAL (in SWP) | - | - | -1.22 | - | 77.6 | - | 39.6 | swp | gal
        Hinge (in SWP) | - | - | +0.34 | - | 80.05 | - | 39.07 | swp | hinge
        HRank (in SWP) | - | - | +0.18 | - | 82.9 | - | 53.5 | swp | hrank
        SWP | - | - | +0.40 | - | 92.66 | - | 71.16 | swp | swp
        @ Filter Pruning via Measuring Feature Map Information (MFMI, Sensors 21(19), 2021), CIFAR-10
        VGG-16 (MFMI) | - | 93.90 | - | 14.72M | - | 313.75M | - | mfmi,D | dense | vgg16_cifar10_nofc
        Network Slimming (run by MFMI) | - | 93.69 | - | 3.45M | - | 199.66M | - | mfmi | network_slimming
        MFMI-E | - | 93.53 | - | 0.99M | - | 83.96M | - | mfmi | mfmi
        MFMI-P | - | 93.47 | - | 0.93M | - | 89.02M | - | mfmi | mfmi
        @ GhostNet (CVPR 2020), its tables of VGG-16 on CIFAR-10
        VGG-16 (GhostNet) | - | 93.6 | - | 15M | - | 313M | - | ghost,D | dense | vgg16_cifar10_512fc
        Ghost-VGG-16, s=2, d=3 | - | 93.7 | - | 7.7M | - | 158M | - | ghost,D | ghostnet | ghost_vgg16_s2_d3
        Ghost-VGG-16, s=3 | - | 93.4 | - | 5.2M | - | 107M | - | ghost,D | ghostnet | ghost_vgg16_s3_d3
        Ghost-VGG-16, s=4 | - | 93.0 | - | 4.0M | - | 80M | - | ghost,D | ghostnet | ghost_vgg16_s4_d3
        Ghost-VGG-16, s=5 | - | 92.9 | - | 3.3M | - | 65M | - | ghost,D | ghostnet | ghost_vgg16_s5_d3
        SBP (in GhostNet) | - | 92.5 | - | - | - | 136M | - | ghost | sbp
        @ Rethinking the Value of Network Pruning (ICLR 2019), L1-norm filter pruning
        VGG-16 (Rethinking) | - | 93.63 | - | - | - | - | - | M | dense
        L1 A, fine-tuned | - | 93.41 | - | - | - | - | - | M | l1_filter:vgg16_cifar10
        L1 A, Scratch-E | - | 93.62 | - | - | - | - | - | M | scratch
        L1 A, Scratch-B | - | 93.78 | - | - | - | - | - | grid | scratch
        """,
    ),
    Survey(
        "vgg19_cifar10_slimming", "VGG-19 on CIFAR-10: network slimming",
        "How far does pruning by the scales of batch normalisation go?",
        (), _columns("error params params_reduction macs macs_reduction"),
        """
        @ Network Slimming (ICCV 2017), Table 1
        VGG-19 | 6.34 | 20.04M | - | 7.97e8 2/MAC | - | paper,D | dense | vgg19_cifar10_nobias
        VGG-19, 70 % pruned | 6.20 | 2.30M | 88.5 | 3.91e8 2/MAC | 51.0 | paper | network_slimming
        """,
    ),
)  # fmt: skip

RESNET56_TABLES = (
    Survey(
        "resnet56_cifar100_combination", "ResNet-56 on CIFAR-100: combination pruning",
        "Which criterion keeps the accuracy when most weights of a ResNet-56 go?",
        ("resnet56_cifar100",), _columns("params_reduction top1 delta"),
        """
        @ Xu, Li, Yuan, J. Zhejiang Univ. (Eng. Sci.) 57(3), 2023, Tables 5 and 6, Fig. 5
        ResNet-56 | - | 71.5 | - | paper | dense | resnet56_cifar100
        DDPG weight pruning, convolutions only | 70.1 | 69.52 | -1.98 | paper | combination_pruning
        Weight sum | 80 | 51.96 | - | paper | l1_filter
        APoZ | 80 | 58.89 | - | paper | apoz
        DDPG at 80 % | 80 | 69.42 | - | computed from its printed leads over weight sum and APoZ | combination_pruning
        Threshold μ+3σ on the FC | - | - | -35.61 | paper | combination_pruning
        """,
    ),
    Survey(
        "resnet56_cifar100_mfmi", "ResNet-56 on CIFAR-100: filter pruning",
        "What do feature maps tell that the scales of batch normalisation do not?",
        ("resnet56_cifar100",), _columns("top1 params macs"),
        """
        @ Filter Pruning via Measuring Feature Map Information (MFMI, Sensors 21(19), 2021), CIFAR-100
        ResNet-56 | 71.77 | 0.86M | - | mfmi,D | dense | resnet56_cifar100
        Network Slimming (run by MFMI) | 70.51 | 0.60M | 62.82M | mfmi | network_slimming
        MFMI-E, 0.50M | 71.28 | 0.50M | 80.48M | mfmi | mfmi
        MFMI-E, 0.41M | 70.67 | 0.41M | 69.88M | mfmi | mfmi
        """,
        {"ResNet-56": "The README prints 71.77M as its MACs, a copy of the accuracy: left out."},
    ),
    Survey(
        "resnet56_cifar10_hrank", "ResNet-56 on CIFAR-10: the comparison of GAL and HRank",
        "Which criterion keeps the accuracy of ResNet-56 at which size?",
        ("resnet56_cifar10",), _columns("top1 params params_reduction macs macs_reduction"),
        """
        @ GAL (CVPR 2019) and HRank (CVPR 2020), ResNet-56 on CIFAR-10
        ResNet-56 | 93.26 | 0.85M | - | 125.49M | - | coring,D | dense | resnet56_cifar10
        L1 | 93.06 | 0.73M | 14.1 | 90.90M | 27.6 | coring,D | l1_filter | resnet56_pruned_B
        He et al. (channel pruning) | 90.80 | - | - | 62.00M | 50.6 | M | channel_pruning
        NISP | 93.01 | 0.49M | 42.4 | 81.00M | 35.5 | coring | nisp
        GAL-0.6, not fine-tuned | 92.98 | 0.75M | 11.8 | 78.30M | 37.6 | gal | gal
        GAL-0.6 | 93.38 | 0.75M | 11.8 | 78.30M | 37.6 | gal | gal
        GAL-0.8, not fine-tuned | 90.36 | 0.29M | 65.9 | 49.99M | 60.2 | gal | gal
        GAL-0.8 | 91.58 | 0.29M | 65.9 | 49.99M | 60.2 | gal | gal
        HRank-1 | 93.52 | 0.71M | 16.8 | 88.72M | 29.3 | coring | hrank
        HRank-2 | 93.17 | 0.49M | 42.4 | 62.72M | 50.0 | hrank,D | hrank | hrank_resnet56_by_rule
        HRank-3 | 90.72 | 0.27M | 68.1 | 32.52M | 74.1 | coring | hrank
        @ Filter Pruning via Measuring Feature Map Information (MFMI, Sensors 21(19), 2021), CIFAR-10
        ResNet-56 (MFMI) | 93.22 | 0.85M | - | 126.55M | - | mfmi | dense | resnet56_cifar10
        Network Slimming (run by MFMI) | 92.94 | 0.41M | - | 64.94M | - | mfmi | network_slimming
        """,
        {"GAL-0.6, not fine-tuned": "HRank quotes this row, not the fine-tuned one, beside its own fine-tuned rows.",
         "GAL-0.8, not fine-tuned": "HRank quotes this row, not the fine-tuned one, beside its own fine-tuned rows."},
    ),
    Survey(
        "resnet56_cifar10_abcpruner", "ResNet-56 on CIFAR-10: ABCPruner",
        "What does a bee colony find when it searches the number of channels of each layer?",
        ("resnet56_cifar10",),
        _columns("base_top1 top1 params params_reduction macs macs_reduction channels channels_reduction"),
        """
        @ ABCPruner (IJCAI 2020), ResNet-56 on CIFAR-10
        ABCPruner-70% | 93.26 | 93.23 | 0.39M | 54.20 | 58.54M | 54.13 | 1482/2032 | 27.07 | abcp,tp_base | abcpruner
        """,
    ),
    Survey(
        "resnet56_cifar10_others", "ResNet-56 on CIFAR-10: other papers, each against its own dense net",
        "What do other papers print for this net?",
        ("resnet56_cifar10",), _columns(PRUNED),
        """
        @ Pruning Filters for Efficient ConvNets (ICLR 2017), Table 1 (printed as errors)
        ResNet-56 (L1) | - | 93.04 | - | 8.5e5 | - | 1.25e8 | - | paper,D | dense | resnet56_cifar10
        L1 pruned-A | - | 93.10 | - | 7.7e5 | 9.4 | 1.12e8 | 10.4 | paper,D | l1_filter | resnet56_pruned_A
        L1 pruned-B | - | 93.06 | - | 7.3e5 | 13.7 | 9.09e7 | 27.6 | paper,D | l1_filter | resnet56_pruned_B
        L1 pruned-B, scratch-train | - | 91.31 | - | - | - | - | - | paper | scratch
        @ Channel Pruning for Accelerating Very Deep Neural Networks (ICCV 2017), Table 7
        Channel pruning 2x | 92.8 | 91.8 | -1.0 | - | - | - | 50 | swp,tp | channel_pruning
        @ AMC (ECCV 2018), Table 2
        AMC 50 % | 92.8 | 91.9 | - | - | - | 62.7M | - | distiller,dnal | amc
        @ Discrimination-aware Channel Pruning (NeurIPS 2018), ResNet-56 on CIFAR-10
        DCP | 93.80 | - | -0.31 | ÷1.97 | - | ÷1.99 | - | grid | dcp
        DCP-Adapt | 93.80 | - | +0.01 | - | 70.3 | - | 47.1 | swp,grid | dcp
        @ Pruning Filter in Filter (SWP, NeurIPS 2020), comparison on CIFAR-10
        L1 (in SWP) | - | - | +0.02 | - | 13.7 | - | 27.6 | swp | l1_filter
        NISP (in SWP) | - | - | -0.03 | - | 42.6 | - | 43.6 | swp | nisp
        IR (in SWP) | - | - | -0.4 | - | - | - | 67.7 | swp | ir
        C-SGD (in SWP) | - | - | +0.23 | - | - | - | 60.8 | swp | c_sgd
        GBN (in SWP) | - | - | -0.03 | - | 66.7 | - | 70.3 | swp | gbn
        HRank (in SWP) | - | - | -2.38 | - | 68.1 | - | 74.1 | swp | hrank
        SWP | - | - | -0.12 | - | 77.7 | - | 75.6 | swp | swp
        @ GhostNet (CVPR 2020), its table of CIFAR-10
        ResNet-56 (GhostNet) | - | 93.0 | - | 0.85M | - | 125M | - | ghost,D | dense | resnet56_cifar10
        Ghost-ResNet-56, s=2 | - | 92.7 | - | 0.43M | - | 63M | - | ghost,D | ghostnet | ghost_resnet56_s2
        @ Rethinking the Value of Network Pruning (ICLR 2019), L1-norm filter pruning
        ResNet-56 (Rethinking) | - | 93.14 | - | - | - | - | - | grid | dense
        L1 A, fine-tuned | - | 92.97 | - | - | - | - | - | M | l1_filter:resnet56_cifar10/A
        L1 A, Scratch-E | - | 92.96 | - | - | - | - | - | M | scratch
        L1 A, Scratch-B | - | 93.09 | - | - | - | - | - | grid | scratch
        L1 B, fine-tuned | - | 92.67 | - | - | - | - | - | M | l1_filter:resnet56_cifar10
        L1 B, Scratch-E | - | 92.54 | - | - | - | - | - | M | scratch
        L1 B, Scratch-B | - | 93.05 | - | - | - | - | - | grid | scratch
        """,
    ),
)  # fmt: skip

RESNET50_TABLES = (
    Survey(
        "resnet50_imagenet_combination", "ResNet-50 on ImageNet: combination pruning",
        "Does combination pruning hold on ImageNet?",
        ("resnet50_imagenet",), _columns("base_top1 base_top5 top1 top5 delta params_reduction"),
        """
        @ Xu, Li, Yuan, J. Zhejiang Univ. (Eng. Sci.) 57(3), 2023, text and abstract
        Combination pruning | 76.02 | 92.94 | 74.16 | 91.96 | -1.86 | 80.9 | paper,abstract | combination_pruning
        """,
        {"": "The rows of the paper's Tables 7 and 8 were not at hand; the next tables hold GAL, HRank and ABCPruner."},
    ),
    Survey(
        "resnet50_imagenet_hrank", "ResNet-50 on ImageNet: the comparison of GAL and HRank",
        "Which criterion keeps the accuracy of ResNet-50 at which size?",
        ("resnet50_imagenet",), _columns("top1 top5 macs params"),
        """
        @ HRank (CVPR 2020), ResNet-50 on ImageNet
        ResNet-50 | 76.15 | 92.87 | 4.09B | 25.50M | mfmi,D | dense | resnet50_torchvision
        SSS-32 | 74.18 | 91.91 | 2.82B | 18.60M | mfmi | sss
        He et al. (channel pruning) | 72.30 | 90.80 | 2.73B | - | mfmi | channel_pruning
        GAL-0.5 | 71.95 | 90.94 | 2.33B | 21.20M | mfmi | gal
        HRank-1 | 74.98 | 92.33 | 2.30B | 16.15M | mfmi | hrank
        GDP-0.6 | 71.19 | 90.71 | 1.88B | - | mfmi | gdp
        GDP-0.5 | 69.58 | 90.14 | 1.57B | - | mfmi | gdp
        SSS-26 | 71.82 | 90.79 | 2.33B | 15.60M | mfmi | sss
        GAL-1 | 69.88 | 89.75 | 1.58B | 14.67M | mfmi | gal
        GAL-0.5-joint | 71.80 | 90.82 | 1.84B | 19.31M | mfmi | gal
        HRank-2 | 71.98 | 91.01 | 1.55B | 13.77M | hrank,D | hrank | hrank_resnet50_by_rule
        ThiNet-50 | 68.42 | 88.30 | 1.10B | 8.66M | mfmi,D | thinet | thinet_resnet50_30
        GAL-1-joint | 69.31 | 89.12 | 1.11B | 10.21M | mfmi | gal
        HRank-3 | 69.10 | 89.58 | 0.98B | 8.27M | mfmi | hrank
        """,
        {"ThiNet-50": "This row is ThiNet-30 of the ThiNet paper: 68.42/88.30, 8.66M params, 2.20B at 2 per MAC."},
    ),
    Survey(
        "resnet50_imagenet_abcpruner", "ResNet-50 on ImageNet: ABCPruner",
        "How does accuracy fall with the number of channels that the search may keep?",
        ("resnet50_imagenet",), _columns("top1 top5 macs params channels"),
        """
        @ ABCPruner (IJCAI 2020), ResNet-50 on ImageNet
        ResNet-50 | 76.01 | - | - | - | - | M | dense
        ABCPruner-100% | 74.843 | 92.272 | 2555.55M | 18.02M | 24040 | abcp | abcpruner
        ABCPruner-80% | 73.864 | 91.687 | 1890.60M | 11.75M | 22518 | abcp | abcpruner
        ABCPruner-70% | 73.516 | 91.512 | 1794.45M | 11.24M | 22348 | abcp | abcpruner
        ABCPruner-50% | 72.582 | 90.19 | 1295.4M | 9.10M | 21426 | abcp | abcpruner
        ABCPruner-30% | 70.289 | 89.631 | 944.85M | 7.35M | 20576 | abcp | abcpruner
        """,
    ),
    Survey(
        "resnet50_imagenet_others", "ResNet-50 on ImageNet: other papers, each against its own dense net",
        "What do other papers print for this net?",
        ("resnet50_imagenet",), _columns("base_top1 base_top5 top1 top5 macs macs_reduction params params_reduction"),
        """
        @ ThiNet (ICCV 2017), Table 3
        ResNet-50 (ThiNet) | - | - | 72.88 | 91.14 | 7.72B 2/MAC | - | 25.56M | - | grid | dense | thinet_resnet50_base
        ThiNet-70 | - | - | 72.04 | 90.67 | 4.88B 2/MAC | - | 16.94M | - | thinet,fq,tq | thinet | thinet_resnet50_70
        ThiNet-50 | - | - | 71.01 | 90.02 | 3.41B 2/MAC | - | 12.38M | - | tq,D | thinet | thinet_resnet50_50
        ThiNet-30 | - | - | 68.42 | 88.30 | 2.20B 2/MAC | - | 8.66M | - | mfmi,D | thinet | thinet_resnet50_30
        @ README of Roll920/ThiNet_Code: the same net, images of kept aspect ratio, and the version of TPAMI
        Same, aspect kept | - | - | 75.30 | 92.20 | 7.72B 2/MAC | - | 25.56M | - | thinet | dense | thinet_resnet50_base
        ThiNet-70 (TPAMI) | - | - | 74.03 | 92.11 | 4.88B 2/MAC | - | 16.94M | - | thinet | thinet | thinet_resnet50_70
        @ Channel Pruning for Accelerating Very Deep Neural Networks (ICCV 2017), Table 5
        Channel pruning 2x, enhanced, fine-tuned | - | 92.2 | - | 90.8 | - | 50 | - | - | cp | channel_pruning
        @ Discrimination-aware Channel Pruning (NeurIPS 2018), ResNet-50 on ImageNet
        DCP 50 % | 76.01 | - | 74.95 | 92.32 | ÷2.25 | - | ÷2.06 | - | grid,tq | dcp
        DCP 30 % | 76.01 | 92.93 | 76.40 | 93.07 | - | - | - | - | grid | dcp
        DCP 70 % | 76.01 | 92.93 | 72.75 | 91.13 | - | - | - | - | grid | dcp
        @ OICSR (CVPR 2019), ResNet-50 on ImageNet
        ResNet-50 (OICSR) | - | - | 76.32 | 93.00 | 4089M | - | - | - | oicsr | dense | resnet50_torchvision
        OICSR, 37.3 % | - | - | 76.53 | 93.16 | 2563M | 37.3 | - | - | oicsr | oicsr
        OICSR, 44.4 % | - | - | 76.30 | 92.92 | 2274M | 44.4 | - | - | oicsr | oicsr
        OICSR, 50.0 % | - | - | 75.95 | 92.66 | 2046M | 50.0 | - | - | oicsr | oicsr
        @ MetaPruning (ICCV 2019), ResNet-50 on ImageNet
        MetaPruning 0.75 | 76.6 | - | 75.4 | - | 2.0G | - | - | - | meta | metapruning
        MetaPruning 0.5 | 76.6 | - | 73.4 | - | 1.0G | - | - | - | meta | metapruning
        @ AMC (ECCV 2018), fine-grained pruning
        AMC fine-grained, 20 % density | 76.13 | - | 76.11 | - | - | - | - | 80 | M | amc
        @ GhostNet (CVPR 2020), its table of ResNet-50 on ImageNet
        ResNet-50 (GhostNet) | - | - | 75.3 | 92.2 | 4.1B | - | 25.6M | - | ghost | dense | resnet50_torchvision
        Ghost-ResNet-50, s=2 | - | - | 75.0 | 92.3 | 2.2B | - | 13.0M | - | ghost | ghostnet | ghost_resnet50_s2
        Ghost-ResNet-50, s=4 | - | - | 74.1 | 91.9 | 1.2B | - | 6.5M | - | ghost | ghostnet | ghost_resnet50_s4
        Versatile-ResNet-50 (in GhostNet) | - | - | 74.5 | 91.8 | 3.0B | - | 11.0M | - | ghost | versatile_filters
        Shift-ResNet-50 (in GhostNet) | - | - | 70.6 | 90.1 | - | - | 6.0M | - | ghost | shift
        NISP-B (in GhostNet) | - | - | - | 90.8 | 2.3B | - | 14.4M | - | ghost | nisp
        Taylor-FO-BN (in GhostNet) | - | - | 71.7 | - | 1.3B | - | 7.9M | - | ghost | taylor_fo_bn
        Slimmable 0.5x (in GhostNet) | - | - | 72.1 | - | 1.1B | - | 6.9M | - | ghost | slimmable
        @ Filter Pruning via Measuring Feature Map Information (MFMI, Sensors 21(19), 2021), ImageNet
        Slimming (run by MFMI) | 76.15 | 92.87 | 70.43 | 89.93 | 2.54B | - | 18.33M | - | mfmi | network_slimming
        @ Differentiable Neural Architecture Learning (DNAL, 2021), comparison on ImageNet
        SSR-L2,0 (in DNAL), 1.9B | - | - | 72.29 | 90.73 | 1.9B | - | 15.5M | - | dnal | ssr
        SSR-L2,0 (in DNAL), 1.7B | - | - | 71.47 | 90.19 | 1.7B | - | 12.0M | - | dnal | ssr
        ThiNet-50, TPAMI (in DNAL) | - | - | 72.03 | 90.99 | 1.71B | - | 12.38M | - | dnal | thinet | thinet_resnet50_50
        ThiNet-30, TPAMI (in DNAL) | - | - | 68.17 | 88.86 | 1.10B | - | 8.66M | - | dnal | thinet | thinet_resnet50_30
        GDP-0.6 (in DNAL) | - | - | 71.89 | 90.71 | 1.88B | - | - | - | dnal | gdp
        GDP-0.5 (in DNAL) | - | - | 70.93 | 90.14 | 1.57B | - | - | - | dnal | gdp
        """,
        {"ResNet-50 (ThiNet)": "A bottleneck of this net strides in its first 1x1 convolution, that of the baseline in "
                               "its 3x3."},
    ),
    Survey(
        "resnet50_imagenet_scratch", "ResNet-50 on ImageNet: pruned structures trained from scratch",
        "Does a pruned structure need the weights that it inherits?",
        ("resnet50_imagenet",), _columns("top1"),
        """
        @ Rethinking the Value of Network Pruning (ICLR 2019), ThiNet and channel pruning on ImageNet
        ThiNet-30, Scratch-E | 70.91 | rethinking | scratch
        ThiNet-30, Scratch-B | 71.57 | rethinking | scratch
        ThiNet-50, Scratch-E | 73.31 | rethinking | scratch
        ThiNet-50, Scratch-B | 73.90 | rethinking | scratch
        ThiNet-70, Scratch-E | 74.42 | rethinking | scratch
        ThiNet-70, Scratch-B | 75.14 | rethinking | scratch
        Channel pruning 2x, Scratch-E | 71.26 | rethinking | scratch
        Channel pruning 2x, Scratch-B | 74.58 | rethinking | scratch
        """,
    ),
)  # fmt: skip

DISTILLATION_TABLES = (
    Survey(
        "distillation_cifar100_same", "Distillation on CIFAR-100: teacher and student of one family",
        "Which knowledge helps a student most when its teacher is a larger net of the same kind?",
        (), _pairs(KD_SAME, {"r56>r20": "resnet56_cifar100"}),
        """
        @ Contrastive Representation Distillation (ICLR 2020), benchmark in the README of HobbitLong/RepDistiller
        Teacher | 75.61 | 75.61 | 72.34 | 74.31 | 74.31 | 79.42 | 74.64 | repdistiller | dense
        Student | 73.26 | 71.98 | 69.06 | 69.06 | 71.14 | 72.50 | 70.36 | repdistiller | student
        KD | 74.92 | 73.54 | 70.66 | 70.67 | 73.08 | 73.33 | 72.98 | repdistiller | kd
        FitNet | 73.58 | 72.24 | 69.21 | 68.99 | 71.06 | 73.50 | 71.02 | repdistiller | fitnets
        AT | 74.08 | 72.77 | 70.55 | 70.22 | 72.31 | 73.44 | 71.43 | repdistiller | at
        SP | 73.83 | 72.43 | 69.67 | 70.04 | 72.69 | 72.94 | 72.68 | repdistiller | sp
        CC | 73.56 | 72.21 | 69.63 | 69.48 | 71.48 | 72.97 | 70.71 | repdistiller | cc
        VID | 74.11 | 73.30 | 70.38 | 70.16 | 72.61 | 73.09 | 71.23 | repdistiller | vid
        RKD | 73.35 | 72.22 | 69.61 | 69.25 | 71.82 | 71.90 | 71.48 | repdistiller | rkd
        PKT | 74.54 | 73.45 | 70.34 | 70.25 | 72.61 | 73.64 | 72.88 | repdistiller | pkt
        AB | 72.50 | 72.38 | 69.47 | 69.53 | 70.98 | 73.17 | 70.94 | repdistiller | ab
        FT | 73.25 | 71.59 | 69.84 | 70.22 | 72.37 | 72.86 | 70.58 | repdistiller | ft
        FSP | 72.91 | n/a | 69.95 | 70.11 | 71.89 | 72.62 | 70.23 | repdistiller | fsp
        NST | 73.68 | 72.24 | 69.60 | 69.53 | 71.96 | 73.30 | 71.53 | repdistiller | nst
        CRD | 75.48 | 74.14 | 71.16 | 71.46 | 73.48 | 75.51 | 73.94 | repdistiller | crd
        """,
        {"": KD_NOTE, "FSP": "The README prints 0.00 for wrn40-2 → wrn40-1: FSP does not apply to that pair."},
    ),
    Survey(
        "distillation_cifar100_other", "Distillation on CIFAR-100: teacher and student of different families",
        "Which knowledge still helps when student and teacher are built differently?",
        (), _pairs(KD_OTHER, {}),
        """
        @ Contrastive Representation Distillation (ICLR 2020), benchmark in the README of HobbitLong/RepDistiller
        Teacher | 74.64 | 79.34 | 79.34 | 79.42 | 79.42 | 75.61 | repdistiller | dense
        Student | 64.60 | 64.60 | 70.36 | 70.50 | 71.82 | 70.50 | repdistiller | student
        KD | 67.37 | 67.35 | 73.81 | 74.07 | 74.45 | 74.83 | repdistiller | kd
        FitNet | 64.14 | 63.16 | 70.69 | 73.59 | 73.54 | 73.73 | repdistiller | fitnets
        AT | 59.40 | 58.58 | 71.84 | 71.73 | 72.73 | 73.32 | repdistiller | at
        SP | 66.30 | 68.08 | 73.34 | 73.48 | 74.56 | 74.52 | repdistiller | sp
        CC | 64.86 | 65.43 | 70.25 | 71.14 | 71.29 | 71.38 | repdistiller | cc
        VID | 65.56 | 67.57 | 70.30 | 73.38 | 73.40 | 73.61 | repdistiller | vid
        RKD | 64.52 | 64.43 | 71.50 | 72.28 | 73.21 | 72.21 | repdistiller | rkd
        PKT | 67.13 | 66.52 | 73.01 | 74.10 | 74.69 | 73.89 | repdistiller | pkt
        AB | 66.06 | 67.20 | 70.65 | 73.55 | 74.31 | 73.34 | repdistiller | ab
        FT | 61.78 | 60.99 | 70.29 | 71.75 | 72.50 | 72.03 | repdistiller | ft
        NST | 58.16 | 64.96 | 71.28 | 74.12 | 74.68 | 74.89 | repdistiller | nst
        CRD | 69.73 | 69.11 | 74.30 | 75.11 | 75.65 | 76.05 | repdistiller | crd
        """, {"": KD_NOTE},
    ),
)  # fmt: skip

LOW_BIT_TABLES = (
    Survey(
        "low_bit_cifar10", "Binary and ternary nets on CIFAR-10",
        "How much accuracy do one or two bits cost?",
        (), _columns("net bits base_top1 top1"),
        """
        @ BinaryConnect (NIPS 2015), Table 2
        No regulariser | BNN ConvNet | 32/32 | - | 89.36 | notes | dense
        BinaryConnect, deterministic | BNN ConvNet | 1/32 | - | 90.10 | notes | binaryconnect
        BinaryConnect, stochastic | BNN ConvNet | 1/32 | - | 91.73 | notes | binaryconnect
        @ Binarized Neural Networks (NIPS 2016), Table 1
        BNN (Torch7) | BNN ConvNet | 1/1 | - | 89.85 | notes | bnn
        BNN (Theano) | BNN ConvNet | 1/1 | - | 88.60 | bnn | bnn
        @ XNOR-Net (ECCV 2016), Sec. 4.2
        BWN | BNN ConvNet | 1/32 | - | 90.12 | paper | xnor_net
        XNOR-Net | BNN ConvNet | 1/1 | - | 89.83 | paper | xnor_net
        @ Ternary Weight Networks (2016), results on CIFAR-10
        FPWN | VGG-7 | 32/32 | - | 92.88 | paper | dense
        BPWN | VGG-7 | 1/32 | - | 90.18 | paper | bpwn
        TWN | VGG-7 | 2/32 | - | 92.56 | paper | twn
        @ Differentiable Soft Quantization (ICCV 2019), results on CIFAR-10
        DSQ, VGG-small | VGG-small | 1/1 | 93.8 | 91.72 | M | dsq
        DSQ, ResNet-20, W1A1 | ResNet-20 | 1/1 | 90.8 | 84.11 | M | dsq
        DSQ, ResNet-20, W1A32 | ResNet-20 | 1/32 | 90.8 | 90.24 | M | dsq
        @ Learning Architectures for Binary Networks (BNAS, ECCV 2020)
        BNAS-A | searched | 1/1 | - | 92.70 | bnas | bnas
        @ BATS: Binary ArchitecTure Search (ECCV 2020)
        BATS (large) | searched | 1/1 | - | 96.1 | abstract | bats
        @ AdderNet (CVPR 2020), results on CIFAR-10
        AdderNet, VGG-small | VGG-small | adder | 93.80 | 93.72 | slac | addernet
        AdderNet, ResNet-20 | ResNet-20 | adder | 92.25 | 91.84 | slac,adder | addernet
        AdderNet, ResNet-32 | ResNet-32 | adder | 93.29 | 93.01 | slac | addernet
        BNN in AdderNet, VGG-small | VGG-small | 1/1 | 93.80 | 89.80 | slac | bnn
        BNN in AdderNet, ResNet-20 | ResNet-20 | 1/1 | 92.25 | 84.87 | slac | bnn
        BNN in AdderNet, ResNet-32 | ResNet-32 | 1/1 | 93.29 | 86.74 | slac | bnn
        """,
        {"TWN": "VGG-7 has one fully connected layer of 1,024 units less than the ConvNet that stands for it here."},
    ),
    Survey(
        "low_bit_imagenet_alexnet", "Binary AlexNet on ImageNet",
        "What do binary weights cost on ImageNet, and what do binary activations?",
        (), _columns("bits top1 top5"),
        """
        @ XNOR-Net (ECCV 2016), Table 1
        Full precision | 32/32 | 56.6 | 80.2 | paper | dense
        BWN | 1/32 | 56.8 | 79.4 | paper | xnor_net
        BinaryConnect | 1/32 | 35.4 | 61.0 | paper | binaryconnect
        XNOR-Net | 1/1 | 44.2 | 69.2 | paper | xnor_net
        BNN (run by XNOR-Net's authors) | 1/1 | 27.9 | 50.42 | paper | bnn
        @ Binarized Neural Networks (NIPS 2016) and its journal version
        BNN (its own authors) | 1/1 | 41.8 | 67.1 | notes,top-5 from memory | bnn
        """,
        {"BNN (run by XNOR-Net's authors)": "BNN's own authors print 41.8: XNOR-Net compares with a run of its own."},
    ),
    Survey(
        "low_bit_imagenet_resnet18", "Low-bit ResNet-18 on ImageNet",
        "How much accuracy does each bit of weights and activations buy?",
        (), _columns("bits base_top1 base_top5 top1 top5"),
        """
        @ XNOR-Net (ECCV 2016), Table 2
        Full precision | 32/32 | - | - | 69.3 | 89.2 | paper | dense | resnet18
        BWN | 1/32 | - | - | 60.8 | 83.0 | paper | xnor_net
        XNOR-Net | 1/1 | - | - | 51.2 | 73.2 | paper | xnor_net
        @ Ternary Weight Networks (2016), results on ImageNet
        BPWN | 1/32 | 65.4 | 86.76 | 57.5 | 81.2 | paper | bpwn
        TWN | 2/32 | 65.4 | 86.76 | 61.8 | 84.2 | paper | twn
        TWN, ResNet-18B | 2/32 | 67.6 | 88.0 | 65.3 | 86.2 | paper | twn
        @ Towards Accurate Binary Convolutional Neural Network (ABC-Net, NIPS 2017)
        ABC-Net 1 / 1 bases | 1/1 | 69.3 | 89.2 | 42.7 | 67.6 | lowbit,base from memory | abc_net
        ABC-Net 3 / 1 | 3/1 | 69.3 | 89.2 | 49.1 | 73.8 | lowbit,base from memory | abc_net
        ABC-Net 5 / 1 | 5/1 | 69.3 | 89.2 | 54.1 | 78.1 | lowbit,base from memory | abc_net
        ABC-Net 3 / 3 | 3/3 | 69.3 | 89.2 | 61.0 | 83.2 | lowbit,base from memory | abc_net
        ABC-Net 3 / 5 | 3/5 | 69.3 | 89.2 | 63.1 | 84.8 | lowbit,base from memory | abc_net
        ABC-Net 5 / 3 | 5/3 | 69.3 | 89.2 | 62.5 | 84.2 | lowbit,base from memory | abc_net
        ABC-Net 5 / 5 | 5/5 | 69.3 | 89.2 | 65.0 | 85.9 | lowbit,base from memory | abc_net
        ABC-Net 5 weight bases | 5/32 | 69.3 | 89.2 | 68.3 | 87.9 | lowbit,fq,base from memory | abc_net
        @ Extremely Low Bit Neural Network (ADMM, AAAI 2018)
        ADMM, ternary | 2/32 | 69.1 | 89.0 | 67.0 | 87.5 | fq,base from memory | admm_low_bit
        ADMM, {-4..4} | 3/32 | 69.1 | 89.0 | 68.0 | 88.3 | fq,base from memory | admm_low_bit
        @ Differentiable Soft Quantization (ICCV 2019), results on ImageNet
        DSQ, W1A32 | 1/32 | 69.90 | - | 63.71 | - | M | dsq
        DSQ, W2A2 | 2/2 | 69.90 | - | 65.17 | - | M | dsq
        DSQ, W3A3 | 3/3 | 69.90 | - | 68.66 | - | M | dsq
        DSQ, W4A4 | 4/4 | 69.90 | - | 69.56 | - | M | dsq
        @ Quantization Interval Learning (CVPR 2019), results on ImageNet
        QIL, W2A2 | 2/2 | 70.2 | - | 65.7 | - | M | qil
        QIL, W3A3 | 3/3 | 70.2 | - | 69.2 | - | M | qil
        QIL, W4A4 | 4/4 | 70.2 | - | 70.1 | - | M | qil
        QIL, W5A5 | 5/5 | 70.2 | - | 70.4 | - | M | qil
        @ PACT (2018), results on ImageNet
        PACT, W2A2 | 2/2 | 70.4 | - | 64.4 | - | M | pact_sawb
        PACT, W3A3 | 3/3 | 70.4 | - | 68.1 | - | M | pact_sawb
        PACT, W4A4 | 4/4 | 70.4 | - | 69.2 | - | M | pact_sawb
        PACT, W5A5 | 5/5 | 70.4 | - | 69.8 | - | M | pact_sawb
        @ Learning Architectures for Binary Networks (BNAS, ECCV 2020)
        BNAS-D (searched) | 1/1 | - | - | 57.69 | 79.89 | bnas | bnas
        BNAS-E (searched) | 1/1 | - | - | 58.76 | 80.61 | bnas | bnas
        BNAS-F (searched) | 1/1 | - | - | 58.99 | 80.85 | bnas | bnas
        BNAS-G (searched) | 1/1 | - | - | 59.81 | 81.61 | bnas | bnas
        BNAS-H (searched) | 1/1 | - | - | 63.51 | 83.91 | bnas | bnas
        @ BATS: Binary ArchitecTure Search (ECCV 2020)
        BATS (searched) | 1/1 | - | - | 60.4 | 83.0 | M | bats
        BATS 2x (searched) | 1/1 | - | - | 66.1 | 87.0 | abstract,top-5 from memory | bats
        @ AdderNet (CVPR 2020), results on ImageNet
        AdderNet | adder | 69.8 | 89.1 | 67.0 | 87.6 | slac | addernet
        @ Kernel Based Progressive Distillation for Adder Neural Networks (PKKD, NeurIPS 2020)
        PKKD adder net | adder | 69.8 | 89.1 | 68.8 | 88.6 | M | pkkd_adder
        """,
        {"ABC-Net 5 weight bases": "Focused Quantization (NeurIPS 2019) quotes 67.30 for the same row.",
         "": "PACT-SAWB, W2A2, is left out: its figure could not be read again anywhere."},
    ),
)  # fmt: skip

LAYER_NOTE = "P: pruning, Q: shared weights, H: Huffman coding; sizes in percent of the same net in 32 bits a weight."
LAYER_TABLES = (
    Survey(
        "deep_compression_lenet300", "LeNet-300-100, layer by layer: Deep Compression",
        "How many bits does each layer take after each stage?",
        ("lenet300_mnist",), _columns(STORED),
        """
        @ Deep Compression (ICLR 2016), Table 2
        ip1 | 235K | 8 | 6 | 4.4 | 5 | 3.7 | 3.1 | 2.32 | copies | deep_compression
        ip2 | 30K | 9 | 6 | 4.4 | 5 | 4.3 | 3.8 | 3.04 | copies | deep_compression
        ip3 | 1K | 26 | 6 | 4.3 | 5 | 3.2 | 15.7 | 12.70 | copies | deep_compression
        total | 266K | 8 (12x) | 6 | 5.1 | 5 | 3.7 | 3.1 (32x) | 2.49 (40x) | copies | deep_compression
        """, {"": LAYER_NOTE}, "lenet300_mnist",
    ),
    Survey(
        "deep_compression_lenet5", "LeNet-5, layer by layer: Deep Compression",
        "How many bits does each layer take after each stage?",
        ("lenet5_mnist",), _columns(STORED),
        """
        @ Deep Compression (ICLR 2016), Table 3
        conv1 | 0.5K | 66 | 8 | 7.2 | 5 | 1.5 | 78.5 | 67.45 | copies | deep_compression
        conv2 | 25K | 12 | 8 | 7.2 | 5 | 3.9 | 6.0 | 5.28 | copies | deep_compression
        ip1 | 400K | 8 | 5 | 4.5 | 5 | 4.5 | 2.7 | 2.45 | copies | deep_compression
        ip2 | 5K | 19 | 5 | 5.2 | 5 | 3.7 | 6.9 | 6.13 | copies | deep_compression
        total | 431K | 8 (12x) | 5.3 | 4.1 | 5 | 4.4 | 3.05 (33x) | 2.55 (39x) | copies | deep_compression
        """, {"": LAYER_NOTE}, "lenet5_mnist",
    ),
)  # fmt: skip

COMPACT_TABLES = (
    Survey(
        "compact_imagenet", "Compact architectures on ImageNet",
        "How accurate are nets that are designed small? (Images of 224 pixels where the label says nothing else.)",
        ("resnet50_imagenet",), _columns("top1 top5 params macs"),
        """
        @ SqueezeNet (2016), Tables 2 and 3
        SqueezeNet 1.0 | 57.5 | 80.3 | 1.25M (4.8MB) | - | paper,D | squeezenet | squeezenet_1.0
        SqueezeNet, simple bypass | 60.4 | 82.5 | 4.8MB | - | M | squeezenet
        @ MobileNets (2017), Tables 6 and 7
        MobileNetV1 1.0 | 70.6 | - | 4.2M | 569M | paper,D | mobilenet_v1 | mobilenet_v1_1_224
        MobileNetV1 0.75 | 68.4 | - | 2.6M | 325M | paper,D | mobilenet_v1 | mobilenet_v1_0.75_224
        MobileNetV1 0.5 | 63.7 | - | 1.3M | 149M | paper | mobilenet_v1 | mobilenet_v1_0.5_224
        MobileNetV1 0.25 | 50.6 | - | 0.5M | 41M | paper | mobilenet_v1 | mobilenet_v1_0.25_224
        MobileNetV1 1.0 @192 | 69.1 | - | 4.2M | 418M | paper,D | mobilenet_v1 | mobilenet_v1_1_192
        MobileNetV1 1.0 @160 | 67.2 | - | 4.2M | 290M | paper,D | mobilenet_v1 | mobilenet_v1_1_160
        MobileNetV1 1.0 @128 | 64.4 | - | 4.2M | 186M | paper,D | mobilenet_v1 | mobilenet_v1_1_128
        @ ShuffleNet (CVPR 2018), Table 2 (printed as errors)
        ShuffleNetV1 1x g=1 | 66.4 | - | - | ~140M | paper,D | shufflenet_v1 | shufflenet_g1_1x
        ShuffleNetV1 1x g=2 | 67.3 | - | - | ~140M | paper | shufflenet_v1
        ShuffleNetV1 1x g=3 | 67.4 | - | - | ~140M | paper,D | shufflenet_v1 | shufflenet_g3_1x
        ShuffleNetV1 1x g=4 | 67.2 | - | - | ~140M | paper | shufflenet_v1
        ShuffleNetV1 1x g=8 | 67.6 | - | - | ~140M | paper | shufflenet_v1
        @ README of megvii-model/ShuffleNet-Series (printed as errors)
        ShuffleNetV1 2x g=3 (release) | 74.1 | 91.4 | 5.4M | 524M | megvii | shufflenet_v1
        ShuffleNetV1 1.5x g=3 (release) | 71.6 | 90.2 | 3.4M | 292M | megvii | shufflenet_v1
        ShuffleNetV1 1x g=3 (release) | 67.8 | 87.7 | 1.9M | 138M | megvii,D | shufflenet_v1 | shufflenet_g3_1x
        ShuffleNetV1 0.5x g=3 (release) | 57.3 | 80.0 | 0.7M | 38M | megvii,D | shufflenet_v1 | shufflenet_g3_0.5x
        @ Xception (CVPR 2017)
        Xception @299 | 79.0 | 94.5 | 22.86M | 8.4B | keras,D | xception | xception
        @ Squeeze-and-Excitation Networks (CVPR 2018), Table 2 (printed as errors)
        SE-ResNet-50 | 76.71 | 93.38 | 28.1M | 3.87B | notes,D | senet | seresnet50
        SE-ResNet-101 | 77.62 | 93.93 | 49.3M | 7.60B | notes,top-1 from memory | senet
        SE-ResNet-152 | 78.43 | 94.27 | 66.8M | 11.32B | M,D | senet | seresnet152
        @ README of hujie-frank/SENet (printed as errors)
        SE-ResNet-50 (Caffe release) | 77.63 | 93.64 | 28.1M | - | senet,D | senet | seresnet50
        SENet-154 (Caffe release) | 81.32 | 95.53 | 115.1M | - | senet,D | senet | senet154
        @ Shift (CVPR 2018)
        ShiftNet-A | 70.1 | 89.7 | 4.1M | 1.4G | light | shift
        ShiftNet-B | 61.2 | 83.6 | 1.1M | 371M | light | shift
        ShiftNet-C | 58.8 | 82.0 | 0.78M | - | M | shift
        @ All You Need is a Few Shifts (CVPR 2019)
        FE-Net 1.0 | 72.9 | - | 3.7M | 301M | light | sparse_shift
        FE-Net 1.37 | 75.0 | - | 5.9M | 563M | light | sparse_shift
        @ Interleaved Group Convolutions (ICCV 2017)
        IGC-L100M2 | 73.05 | 91.08 | 8.61M | 1.3G | igc | igcv
        @ MnasNet (CVPR 2019), Table 1
        MnasNet-A1 | 75.2 | 92.5 | 3.9M | 312M | ghost,D | mnasnet | mnasnet_a1
        MnasNet-A2 | 75.6 | 92.7 | 4.8M | 340M | quoted | mnasnet
        MnasNet-A3 | 76.7 | 93.3 | 5.2M | 403M | quoted,params from memory | mnasnet
        @ GhostNet (CVPR 2020), its table of ImageNet
        GhostNet 0.5x | 66.2 | 86.6 | 2.6M | 42M | ghost | ghostnet | ghostnet_timm_0.5x
        GhostNet 1.0x | 73.9 | 91.4 | 5.2M | 141M | ghost,D | ghostnet | ghostnet_timm
        GhostNet 1.3x | 75.7 | 92.7 | 7.3M | 226M | ghost | ghostnet | ghostnet_timm_1.3x
        @ EfficientNet (ICML 2019), Table 2
        EfficientNet-B0 @224 | 77.1 | 93.3 | 5.3M | 0.39B | keras,D | efficientnet | efficientnet_b0
        EfficientNet-B1 @240 | 79.1 | 94.4 | 7.8M | 0.70B | keras,D | efficientnet | efficientnet_b1
        EfficientNet-B2 @260 | 80.1 | 94.9 | 9.2M | 1.0B | keras,D | efficientnet | efficientnet_b2
        EfficientNet-B3 @300 | 81.6 | 95.7 | 12M | 1.8B | keras | efficientnet
        EfficientNet-B4 @380 | 82.9 | 96.4 | 19M | 4.2B | keras,D | efficientnet | efficientnet_b4
        EfficientNet-B5 @456 | 83.6 | 96.7 | 30M | 9.9B | keras | efficientnet
        EfficientNet-B6 @528 | 84.0 | 96.8 | 43M | 19B | keras,D | efficientnet | efficientnet_b6
        EfficientNet-B7 @600 | 84.3 | 97.0 | 66M | 37B | effnet,D | efficientnet | efficientnet_b7
        @ RegNet (CVPR 2020), model zoo of facebookresearch/pycls
        RegNetX-200MF | 68.9 | - | 2.7M | 0.2B | pycls,D | regnet | regnetx_200mf
        RegNetX-400MF | 72.7 | - | 5.2M | 0.4B | pycls,D | regnet | regnetx_400mf
        RegNetX-800MF | 75.2 | - | 7.3M | 0.8B | pycls,D | regnet | regnetx_800mf
        RegNetX-1.6GF | 77.0 | - | 9.2M | 1.6B | pycls | regnet | regnetx_1.6gf
        RegNetX-4.0GF | 78.6 | - | 22.1M | 4.0B | pycls | regnet | regnetx_4.0gf
        RegNetX-8.0GF | 79.3 | - | 39.6M | 8.0B | pycls | regnet | regnetx_8.0gf
        RegNetX-32GF | 80.5 | - | 107.8M | 31.7B | pycls | regnet | regnetx_32gf
        RegNetY-200MF | 70.4 | - | 3.2M | 0.2B | pycls | regnet | regnety_200mf
        RegNetY-400MF | 74.1 | - | 4.3M | 0.4B | pycls | regnet | regnety_400mf
        RegNetY-800MF | 76.3 | - | 6.3M | 0.8B | pycls | regnet | regnety_800mf
        RegNetY-1.6GF | 78.0 | - | 11.2M | 1.6B | pycls | regnet
        RegNetY-4.0GF | 79.4 | - | 20.6M | 4.0B | pycls | regnet | regnety_4.0gf
        RegNetY-8.0GF | 79.9 | - | 39.2M | 8.0B | pycls | regnet | regnety_8.0gf
        RegNetY-32GF | 81.0 | - | 145.0M | 32.3B | pycls | regnet | regnety_32gf
        @ Learning Versatile Filters (NeurIPS 2018), as GhostNet (CVPR 2020) quotes it
        Versatile-ResNet-50 | 74.5 | 91.8 | 11.0M | 3.0B | ghost | versatile_filters
        @ AdderNet (CVPR 2020), results on ImageNet
        AdderNet ResNet-50 | 74.9 | 91.7 | - | additions only | adder | addernet
        """,
        {"EfficientNet-B7 @600": "The first release of the code prints 84.4 and 97.1.",
         "SE-ResNet-50": "The paper's own run and the released Caffe model are two trainings of one net."},
    ),
)  # fmt: skip

SURVEYS: tuple[Survey, ...] = (
    *VGG16_TABLES, *RESNET56_TABLES, *RESNET50_TABLES, *DISTILLATION_TABLES, *LOW_BIT_TABLES, *LAYER_TABLES,
    *COMPACT_TABLES,
)  # fmt: skip
