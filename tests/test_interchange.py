"""ONNX: the same function in one file, the net left as it was, and a sentence where it cannot be."""

import copy
import threading

import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from baselines import base
from baselines.errors import UserError
from repro.interchange import cores, session, to_onnx

TINY = ("tiny_resnet_synthetic", "tiny_plain_synthetic")


def a_net(name=TINY[0]):
    """An untrained net with batch statistics other than those it began with, in eval mode."""
    net = base.load(name).net(4)
    with torch.no_grad():
        net.train()(torch.randn(8, 3, 16, 16) + 1)
    return net.eval()


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("traced", [1, 3])
def test_any_batch_gives_the_logits_of_pytorch(name, traced):
    net = a_net(name)
    run = session(to_onnx(net, torch.randn(traced, 3, 16, 16)))
    for batch in (1, 2, 7):
        images = torch.randn(batch, 3, 16, 16)
        with torch.no_grad():
            assert torch.allclose(run(images), net(images), atol=1e-5)


def test_one_file_holds_everything():
    net = a_net()
    data = to_onnx(net, torch.zeros(2, 3, 16, 16))
    model = onnx.load_from_string(data)
    onnx.checker.check_model(model, full_check=True)
    for values, name, rest in ((model.graph.input, "images", [3, 16, 16]), (model.graph.output, "logits", [4])):
        (value,) = values
        batch, *sizes = value.type.tensor_type.shape.dim
        assert (value.name, batch.dim_param, [s.dim_value for s in sizes]) == (name, "batch", rest)
    held = sum(onnx.numpy_helper.to_array(t).size for t in model.graph.initializer)
    weights = sum(m.weight.numel() for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    assert held >= weights and len(data) > 4 * weights
    assert not any(t.external_data for t in model.graph.initializer)


def test_the_net_is_left_as_it_was():
    net = a_net().to(memory_format=torch.channels_last).train()
    net.linear.eval()
    net.conv1.weight.requires_grad_(False)
    modes = [m.training for m in net.modules()]
    state, random = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    layouts = [(p.stride(), p.requires_grad, p.data_ptr()) for p in net.parameters()]
    to_onnx(net, torch.zeros(2, 3, 16, 16))
    assert [m.training for m in net.modules()] == modes and len(set(modes)) == 2
    assert [(p.stride(), p.requires_grad, p.data_ptr()) for p in net.parameters()] == layouts
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


def test_mode_and_memory_format_of_the_net_make_no_difference():
    net, images = a_net(), torch.randn(2, 3, 16, 16)
    plain = to_onnx(net, images)
    for training in ("", "bn1"):  # the whole net, or one module only
        other = copy.deepcopy(net).to(memory_format=torch.channels_last)
        other.get_submodule(training).train()
        assert to_onnx(other, images.contiguous(memory_format=torch.channels_last)) == plain


class Exotic(nn.Module):
    """Uses an operator that ONNX does not have."""

    def forward(self, x):
        return torch.linalg.qr(x.flatten(1).T)[0]


class Lock(nn.Flatten):
    """Holds something that cannot be copied."""

    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()


@pytest.mark.parametrize("net", [Exotic(), Lock(), nn.Linear(5, 2)], ids=lambda net: type(net).__name__)
def test_a_net_that_onnx_cannot_hold_is_one_sentence(net):
    with pytest.raises(UserError, match=r"^The network cannot be exported to ONNX \(\w+Error: .*\): use .*\.$"):
        to_onnx(net, torch.zeros(2, 3, 4, 4))


def test_a_net_of_two_gigabytes_is_refused_before_anything_is_copied():
    with pytest.raises(UserError, match=r"holds 2\.1 GB, and one ONNX file holds less than 2\.1 GB: export a smaller"):
        to_onnx(nn.Linear(2**14, 2**15, bias=False, device="meta"), torch.zeros(1, 2**14))


@pytest.mark.parametrize("cut", [0, 1, -100])
def test_a_broken_file_is_one_sentence(cut):
    data = to_onnx(a_net(), torch.zeros(2, 3, 16, 16))[:cut]
    with pytest.raises(UserError, match=rf"cannot run this file of {len(data)} bytes \(.+\): give a whole ONNX file"):
        session(data)


def test_images_may_lie_anyhow_in_memory_and_need_gradients():
    net = a_net()
    images = torch.randn(3, 3, 16, 16).contiguous(memory_format=torch.channels_last).requires_grad_()
    logits = session(to_onnx(net, images[:1].detach()))(images)
    assert torch.allclose(logits, net(images).detach(), atol=1e-5) and not logits.requires_grad


@pytest.mark.parametrize(("threads", "asked"), [(1, 1), (3, 3), (0, cores())])
def test_threads_are_as_asked_and_rest_between_calls(threads, asked, monkeypatch):
    seen = []
    real = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda data, options, **more: seen.append(options) or real(data, options, **more),
    )
    net, images = a_net(), torch.randn(2, 3, 16, 16)
    logits = session(to_onnx(net, images), threads)(images)
    assert torch.allclose(logits, net(images).detach(), atol=1e-5)
    (options,) = seen
    assert options.intra_op_num_threads == asked
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"
