"""A network as a packed file and its JSON: what comes back, and what is refused."""

import json
import random

import pytest
import torch
from test_architecture import mutate
from torch import nn

from baselines import base
from baselines.errors import UserError
from methods.kit import surgery
from methods.kit.coding import Coding, attach, attach_input, codings, input_bits
from repro import packed
from repro.architecture import choose_root

NAME, CLASSES, FACTS = "tiny_plain_synthetic", 4, {"input": [3, 16, 16], "method": "x", "ratio": 0.5, "kept": {"0": 3}}


def compressed():
    """A pruned net with a codebook, a binary layer, zeros, statistics of its own, and 8-bit activations."""
    model, example = base.load(NAME).net(CLASSES), torch.randn(8, 3, 16, 16)
    model.train()(example)
    keep = {name: torch.arange(layer.width) % 3 > 0 for name, layer in surgery.layers(model, example).items()}
    surgery.remove(model, example, keep)
    with torch.no_grad():
        model.features[0].weight.mul_(2).round_()
        model.features[4].weight.copy_(model.features[4].weight.sign())
        model.classifier[1].weight[:, ::2] = 0
    attach(model.features[0], "weight", Coding("codebook", bits=8, huffman=True))
    attach(model.features[4], "weight", Coding("binary"))
    attach_input(model.features[4], 8)
    return model.eval()


def saved(folder, model=None, facts=FACTS):
    """(the model, the path of its two files without suffix)."""
    model = model or compressed()
    path = folder / "nets" / "3f2a"
    assert packed.save(model, path, choose_root(model, base.load(NAME), CLASSES), facts) == packed.files(path)[0]
    return model, path


def same(a, b):
    """Bit for bit."""
    one, two = a.state_dict(), b.state_dict()
    x = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        return list(one) == list(two) and all(map(torch.equal, one.values(), two.values())) and torch.equal(a(x), b(x))


def test_everything_comes_back(tmp_path):
    model, path = saved(tmp_path)
    net, facts = packed.read(path)
    assert same(model, net) and facts == FACTS and not any(module.training for module in net.modules())
    assert codings(net) == codings(model) and len(codings(net)) == 2
    assert [input_bits(m) for m in net.modules()] == [input_bits(m) for m in model.modules()]
    assert same(packed.load(path), net) and sorted(p.name for p in path.parent.iterdir()) == [
        "3f2a.json",
        "3f2a.packed",
    ]


def test_what_was_loaded_is_saved_as_the_same_files(tmp_path):
    _, path = saved(tmp_path)
    _, other = saved(tmp_path / "again", packed.load(path))
    for one, two in zip(packed.files(path), packed.files(other), strict=True):
        assert one.read_bytes() == two.read_bytes()


def test_a_dot_in_the_name_is_no_suffix(tmp_path):
    model = compressed()
    packed.save(model, tmp_path / "a.b", choose_root(model, base.load(NAME), CLASSES), {})
    packed.save(model, tmp_path / "a.c", choose_root(model, base.load(NAME), CLASSES), {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.b.json", "a.b.packed", "a.c.json", "a.c.packed"]


def test_a_net_that_cannot_be_described_leaves_the_files_as_they_were(tmp_path):
    model, path = saved(tmp_path)
    other = compressed()
    other.features[2].slope = 1
    with pytest.raises(UserError, match="'slope'"):
        packed.save(other, path, choose_root(other, base.load(NAME), CLASSES), FACTS)
    assert same(packed.load(path), model)


@pytest.mark.parametrize("writes", [0, 1])
def test_a_kill_while_saving_never_leaves_a_pair_that_loads_wrongly(tmp_path, monkeypatch, writes):
    model, path = saved(tmp_path)
    replace, done = packed.replace, []

    def dying(file, content):
        if len(done) == writes:
            raise KeyboardInterrupt
        done.append(file)
        replace(file, content)

    other = compressed()
    nn.init.ones_(other.classifier[3].bias)
    monkeypatch.setattr(packed, "replace", dying)
    for folder in (tmp_path, tmp_path / "new"):
        done.clear()
        with pytest.raises(KeyboardInterrupt):
            saved(folder, other)
    if writes == 0:
        assert same(packed.load(path), model)
    else:
        with pytest.raises(UserError, match=r"3f2a.packed does not belong to 3f2a.json, or is damaged: copy both"):
            packed.load(path)
    with pytest.raises(UserError, match=r"There is no file .*3f2a.json: a network is .* together"):
        packed.load(tmp_path / "new" / "nets" / "3f2a")


@pytest.mark.parametrize("gone, left", [("json", "packed"), ("packed", "json")])
def test_a_missing_partner(tmp_path, gone, left):
    _, path = saved(tmp_path)
    path.with_name(f"3f2a.{gone}").unlink()
    with pytest.raises(UserError, match=rf"There is no file .*3f2a.{gone}: a network is 3f2a.{left} and 3f2a.{gone}"):
        packed.load(path)


def cut(data):
    return data[:-1]


def flipped(data):
    return data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]


@pytest.mark.parametrize("damage", [cut, flipped, lambda data: b"", lambda data: data + b"x"])
def test_a_damaged_packed_file(tmp_path, damage):
    _, path = saved(tmp_path)
    _, file = packed.files(path)
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(UserError, match=r"3f2a.packed does not belong to 3f2a.json, or is damaged"):
        packed.load(path)


def test_the_packed_file_of_another_run(tmp_path):
    (_, one), (_, two) = saved(tmp_path), saved(tmp_path / "b", base.load(NAME).net(CLASSES).eval())
    packed.files(two)[1].replace(packed.files(one)[1])
    with pytest.raises(UserError, match=r"does not belong to 3f2a.json"):
        packed.load(one)


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "is no description of a network .JSONDecodeError"),
        ("[1, 2]", "is no description of a network .TypeError"),
        ("7", "is no description of a network .TypeError"),
        ("{}", "is no description of a network .KeyError: 'format'"),
        ("[" * 100_000, "is no description of a network .RecursionError"),
        ('{"format": NaN}', "is no description of a network .ValueError: NaN is not allowed"),
        ('{"format": 2}', "has the format 2, and this version reads 1"),
        ('{"format": "1"}', "has the format '1', and this version reads 1"),
        ('{"format": 1}', "does not match its own checksum"),
        (b"\xff\xfe\x00", "is no description of a network .UnicodeDecodeError"),
    ],
    ids=range(10),
)
def test_a_file_that_is_no_description(tmp_path, text, words):
    _, path = saved(tmp_path)
    packed.files(path)[0].write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=words):
        packed.load(path)


def test_mutations_of_the_json_are_refused(tmp_path):
    model, path = saved(tmp_path)
    file, _ = packed.files(path)
    whole, rng = json.loads(file.read_text()), random.Random(1)
    refused = 0
    for _ in range(2000):
        changed = mutate(whole, rng)
        file.write_text(json.dumps(changed))
        try:
            net = packed.load(path)
        except UserError:
            refused += 1
        else:
            assert changed == whole and same(net, model)
    assert refused > 1900


def test_damage_to_any_byte_of_the_json_is_refused_or_without_effect(tmp_path):
    model, path = saved(tmp_path)
    file, _ = packed.files(path)
    whole, rng = file.read_bytes(), random.Random(2)
    for place in rng.sample(range(len(whole)), 300):
        file.write_bytes(whole[:place] + bytes([rng.randrange(256)]) + whole[place + 1 :])
        try:
            assert same(packed.load(path), model)
        except UserError as error:
            assert str(error).endswith("run it again.")


def forged(path, change):
    """Alter the JSON and give it the right checksum, as whoever wants to do harm would."""
    file, _ = packed.files(path)
    content = json.loads(file.read_text())
    del content["sha256"]
    change(content)
    file.write_text(json.dumps({**content, "sha256": packed._digest(content)}))


def hostile(content):
    content["architecture"]["changes"][0]["class"] = "os.system"


def other_shape(content):
    content["architecture"]["root"]["classes"] = 5


def other_layer(content):
    content["architecture"]["changes"].append({"path": "features.1", "class": "torch.nn.Identity", "args": {}})


def other_type(content):
    content["architecture"] = [1]


@pytest.mark.parametrize(
    "change, words",
    [
        (hostile, "3f2a.packed cannot be loaded; .*the class 'os.system' is none of torch.nn"),
        (other_shape, r"has float32 \(5, 24\) as 'classifier.3.weight', but the packed file float32 \(4, 24\)"),
        (other_layer, r"has nothing as 'features.1.weight', but the packed file float32 \(5,\)"),
        (other_type, "is not an object of root, changes"),
        (lambda content: content.update(facts=[]), "does not match its own checksum"),
    ],
)
def test_a_forged_json_is_refused(tmp_path, change, words):
    _, path = saved(tmp_path)
    forged(path, change)
    with pytest.raises(UserError, match=words):
        packed.load(path)
