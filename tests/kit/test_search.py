"""The search kit against brute force, numpy and scipy; and that DDPG finds planted structures that luck does not."""

import copy
import functools
import itertools
import random
from fractions import Fraction

import numpy as np
import pytest
import torch
from oracle import mutant
from scipy import stats
from torch import nn

from baselines.errors import UserError
from baselines.models.tiny import TinyPlain, tiny_resnet
from methods.kit import search
from methods.kit.search import Counts, Episodes, Space

COSTS = np.array([1.0, 2.0, 5.0])


def free(layer, actions):
    """Bounds that bind nothing."""
    return 0.0, 1.0


def space_of(bounds=free, costs=COSTS, **fields):
    features = np.stack([np.arange(len(costs)), costs**2, np.full(len(costs), 7.0)], axis=1)
    return Space(features, costs, bounds, **fields)


def value(actions):
    """A reward that differs from episode to episode."""
    return -sum((a - 0.3) ** 2 for a in actions)


# -- the environment -------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::UserWarning")  # advice: no spec, a symmetric action space
def test_gymnasium_and_stable_baselines_accept_the_environment():
    from gymnasium.utils.env_checker import check_env
    from stable_baselines3.common import env_checker

    for layers in (1, 3):
        env = search.environment(space_of(costs=COSTS[:layers]), Episodes(value))
        check_env(env)
        env_checker.check_env(env)


def states_follow_the_definition(module):
    """Whether each state is (scaled features, reduced so far, rest, last action), worked out by hand for 3 layers."""
    tried = module.Episodes(value)
    space = module.Space(space_of().features, COSTS, lambda layer, actions: (0.25, 0.75))
    env = module.environment(space, tried)
    seen = [env.reset()[0], *(env.step(np.array([wanted], np.float32))[0] for wanted in (0.5, 0.9))]
    wanted = [
        (0, 0, 0, 0, 7 / 8, 1),
        (1 / 2, 3 / 24, 0, 0.5 / 8, 5 / 8, 0.5),
        (1, 1, 0, (0.5 + 2 * 0.25) / 8, 0, 0.75),
    ]
    last = env.step(np.array([0.0], np.float32))
    ends = last[1:4] == (value((0.5, 0.75, 0.25)), True, False)
    return ends and np.allclose(seen, wanted) and tried.history == [(last[1], (0.5, 0.75, 0.25))]


def test_states():
    assert states_follow_the_definition(search)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("costs[layer + 1 :].sum()", "costs[layer:].sum()"),
        ("cost * (1 - action) for", "cost * action for"),
        ("if self.actions else 1.0", "if self.actions else 0.0"),
        ("(features - low) / np.where(span > 0, span, 1)", "features / np.where(span > 0, span, 1)"),
        ("min(max(self.snap(layer, float(wanted)), low), high)", "max(self.snap(layer, float(wanted)), low)"),
    ],
    ids=["rest with this layer", "kept for reduced", "first action", "not shifted", "unbounded"],
)
def test_the_oracle_catches_other_states(old, new):
    assert not states_follow_the_definition(mutant(search, old, new))


def test_a_repeated_episode_is_judged_once():
    calls = []
    space = space_of(snap=lambda layer, action: float(action > 0.5))
    found = search.search(space, lambda actions: calls.append(actions) or sum(actions), 40, 40, seed=0)
    assert len(found.episodes) == 40 and found.evaluations == len(calls) == len(set(calls)) <= 8
    assert found.reward == 3.0 and found.actions == (1.0, 1.0, 1.0) and found.seconds > 0


# -- exploration -----------------------------------------------------------------------------------------------------


def cdf(values, mean, sigma):
    return stats.truncnorm.cdf(values, (0 - mean) / sigma, (1 - mean) / sigma, loc=mean, scale=sigma)


def is_truncated_normal(module):
    generator = np.random.default_rng(0)
    for mean, sigma in ((0.5, 0.5), (0.0, 0.5), (1.0, 0.2), (0.9, 0.1), (0.3, 0.01)):
        drawn = [module.truncated_normal(mean, sigma, generator) for _ in range(2000)]
        if stats.kstest(drawn, cdf, (mean, sigma)).pvalue < 0.001:
            return False
    return True


def test_truncated_normal():
    assert is_truncated_normal(search)
    line = "while not 0 <= (drawn := generator.normal(mean, sigma)) <= 1:\n        pass\n    return drawn"
    assert not is_truncated_normal(mutant(search, line, "return np.clip(generator.normal(mean, sigma), 0, 1)"))


def explores_as_published(module, warmup=10, mean=0.95):
    """Whether actions are uniform in the warm-up and then from N(mean, (0.5 * 0.95^e)^2) truncated, by KS tests."""
    agent = module.ddpg(module.environment(space_of(), module.Episodes(value)), 3, warmup, seed=0)
    agent.predict = lambda observation: (np.array([[mean]], np.float32), None)
    uniform, levels = [], []
    for step in range(1500):
        agent.num_timesteps, agent._episode_num = step % (3 * warmup), step % (3 * warmup) // 3
        uniform.append(agent._sample_action(3 * warmup)[0].item())
    for episode in itertools.chain.from_iterable([range(40)] * 20):
        agent.num_timesteps, agent._episode_num = 3 * (warmup + episode), warmup + episode
        action, stored = agent._sample_action(3 * warmup)
        assert stored.item() == pytest.approx(2 * action.item() - 1, abs=1e-6)
        levels.append(cdf(action.item(), mean, 0.5 * 0.95**episode))
    return min(stats.kstest(values, "uniform").pvalue for values in (uniform, levels)) > 0.001


def test_exploration():
    assert explores_as_published(search)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("decay ** (self._episode_num - warmup)", "decay ** self._episode_num"),
        ("if self.num_timesteps < learning_starts:", "if self.num_timesteps < 0:"),
        ("mean = self.predict(self._last_obs)[0].item()", "mean = 0.5"),
    ],
    ids=["counts the warm-up", "no warm-up", "blind to the actor"],
)
def test_the_oracle_catches_another_exploration(old, new):
    assert not explores_as_published(mutant(search, old, new))


# -- learning --------------------------------------------------------------------------------------------------------


def stores_whole_episodes(module, episodes=4):
    """Whether the replay memory has every step with its episode's last reward, and only last steps as ends."""
    tried = module.Episodes(value)
    agent = module.ddpg(module.environment(space_of(), tried), 3, episodes, seed=1)
    agent.learn(3 * episodes, log_interval=None)
    memory = agent.replay_buffer
    rewards = np.repeat([reward for reward, _ in tried.history], 3)
    actions = np.array([action for _, actions in tried.history for action in actions])
    seen, then = memory.observations[: 3 * episodes, 0], memory.next_observations[: 3 * episodes, 0]
    inner = np.arange(3 * episodes) % 3 < 2
    return (
        memory.pos == 3 * episodes
        and np.allclose(memory.rewards[: memory.pos, 0], rewards)
        and np.allclose(memory.actions[: memory.pos, 0, 0], 2 * actions - 1, atol=1e-6)
        and np.array_equal(memory.dones[: memory.pos, 0] == 0, inner)
        and np.array_equal(then[inner], seen[1:][inner[:-1]])
    )


def test_every_step_gets_the_final_reward():
    assert stores_whole_episodes(search)


@pytest.mark.parametrize(
    ("old", "new"),
    [("taken, reward, end, info)", "taken, reward * end, end, info)"), ("self.steps.clear()", "pass")],
    ids=["only the last step", "episodes again and again"],
)
def test_the_oracle_catches_another_memory(old, new):
    assert not stores_whole_episodes(mutant(search, old, new))


def takes_off_the_average(module):
    """Whether a batch's rewards lose the moving average of the batch means, started at the first batch."""
    from gymnasium.spaces import Box

    rng, average = np.random.default_rng(0), None
    memory = module.memory()(50, Box(-9, 9, (1,), np.float32), Box(-1, 1, (1,), np.float32), "cpu")
    for _ in range(50):  # one-step episodes whose observation is the reward
        reward = rng.normal(2, 1, (1, 1)).astype(np.float32)
        memory.add(reward, reward, np.zeros((1, 1)), reward[0], np.array([True]), [{}])
    for _ in range(5):
        batch = memory.sample(8)
        raw = batch.observations.numpy()
        average = raw.mean() if average is None else 0.5 * average + 0.5 * raw.mean()
        if not np.allclose(batch.rewards.numpy(), raw - average, atol=1e-5):
            return False
    return True


def test_rewards_lose_their_moving_average():
    assert takes_off_the_average(search)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("batch.rewards - self.average", "batch.rewards - mean"),
        ("mean if self.average is None else", "SMOOTHING * mean if self.average is None else"),
        ("rewards=batch.rewards - self.average", "rewards=batch.rewards"),
    ],
    ids=["of one batch", "started at 0", "no baseline"],
)
def test_the_oracle_catches_another_baseline(old, new):
    assert not takes_off_the_average(mutant(search, old, new))


def test_the_agent_is_amcs():
    agent = search.ddpg(search.environment(space_of(), Episodes(value)), 3, 2, seed=0)
    agent.learn(3 * 5, log_interval=None)
    assert agent._n_updates == 3 * (5 - 2)  # one for each step behind the warm-up
    rates = [agent.actor.optimizer.param_groups[0]["lr"], agent.critic.optimizer.param_groups[0]["lr"]]
    assert rates == [1e-4, 1e-3] and (agent.tau, agent.gamma, agent.batch_size) == (0.01, 1.0, 64)
    assert agent.buffer_size == 300 and len(agent.critic.q_networks) == 1
    for net in (agent.actor.mu, agent.critic.q_networks[0]):
        assert [m.out_features for m in net if isinstance(m, nn.Linear)] == [300, 300, 1]


def test_the_same_seed_gives_the_same_episodes_whatever_came_before():
    first = search.search(space_of(), value, 6, 3, seed=5)
    torch.rand(3), np.random.rand(3), random.random()
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    again = search.search(space_of(), value, 6, 3, seed=5)
    assert again.episodes == first.episodes != search.search(space_of(), value, 6, 3, seed=6).episodes
    assert len(first.episodes) == 6 and first.reward == max(reward for reward, _ in first.episodes)
    for now, then in zip((torch.get_rng_state(), np.random.get_state()[1], random.getstate()), states, strict=True):
        assert np.array_equal(now, then) if not isinstance(now, tuple) else now == then


def searches_without_gradients(module):
    """Whether a search finds the same where its caller has switched gradients off, and leaves them off."""
    with torch.no_grad():
        blind = module.search(space_of(), value, 8, 3, seed=5)
        off = not torch.is_grad_enabled()
    return off and blind.episodes == search.search(space_of(), value, 8, 3, seed=5).episodes


def test_gradients_of_the_caller():
    assert searches_without_gradients(search)
    with pytest.raises(RuntimeError, match="does not require grad"):
        searches_without_gradients(mutant(search, "with torch.enable_grad():", "if True:"))


# -- planted structures ----------------------------------------------------------------------------------------------

ALIVE = np.array([0.9, 0.2] * 5)  # share of live channels in each of ten layers of 40
EPISODES, WARMUP, SEEDS = 60, 20, range(5)
LIVE = 40 * ALIVE
BUDGET = Counts(np.full(10, 40), lambda counts: float(np.sum(counts)), 1.05 * LIVE.sum(), lowest=0.1)
PLANTED = Space(np.stack([np.arange(10), 1 - ALIVE], axis=1), np.ones(10), BUDGET.bounds, BUDGET.snap)


def survivors(actions):
    """Minus the mean share of its live channels that a layer loses: dead ones go first."""
    return -float((np.maximum(LIVE - BUDGET.of(actions), 0) / LIVE).mean())


@functools.cache
def searched(seed):
    return search.search(PLANTED, survivors, EPISODES, WARMUP, seed)


def lucky(seed):
    """The best of as many episodes of uniform actions."""
    rng, best = np.random.default_rng(seed), -1.0
    for _ in range(EPISODES):
        actions = ()
        while len(actions) < 10:
            actions += (PLANTED.execute(actions, rng.random()),)
        best = max(best, survivors(actions))
    return best


@pytest.mark.parametrize("seed", SEEDS)
def test_the_planted_structure_is_found(seed):
    """The best episode loses less than half of what uniform shares lose, and full layers keep more than empty ones."""
    found, uniform = searched(seed), survivors((BUDGET.goal / 400,) * 10)
    full, empty = np.array(found.actions)[ALIVE > 0.5], np.array(found.actions)[ALIVE < 0.5]
    assert found.reward > 0.5 * uniform and full.mean() - empty.mean() > 0.4
    assert all(BUDGET.goal - 1 < BUDGET.of(actions).sum() <= BUDGET.goal for _, actions in found.episodes)


def test_the_search_beats_random_search_and_an_agent_that_does_not_learn():
    ours, theirs = [searched(seed).reward for seed in SEEDS], [lucky(seed) for seed in range(20)]
    idle = mutant(search, "gradient_steps=-1,", "gradient_steps=0,")
    unlearned = [idle.search(PLANTED, survivors, EPISODES, WARMUP, seed).reward for seed in SEEDS]
    assert stats.ranksums(ours, theirs, alternative="greater").pvalue < 0.01
    assert stats.ranksums(ours, unlearned, alternative="greater").pvalue < 0.05
    assert stats.ranksums(unlearned, theirs, alternative="greater").pvalue > 0.05


# -- bounds ----------------------------------------------------------------------------------------------------------


def chain(counts):
    """MACs of a chain of three convolutions and a classifier: outputs times inputs."""
    a, b, c = (float(n) for n in counts)
    return 30 * 3 * a + 9 * a * b + 4 * b * c + 2 * c


def bounds_by_brute_force(counts, grid, prefix):
    """(lowest, highest) count behind ``prefix``, from all ways to go on; None where nothing meets the goal."""
    ways = [way for way in itertools.product(*grid) if way[: len(prefix)] == prefix]
    fits = [way[len(prefix)] for way in ways if chain(way) <= counts.goal]
    spends = [way[len(prefix)] for way in ways if chain(way) >= counts.goal]
    return min([max(fits), *spends]), max(fits)


def bounds_are_right(module):
    sizes = np.array([6, 5, 7])
    for share, lowest, step in itertools.product((0.3, 0.5, 0.75, 1.0), (0.0, 0.2), (1, 2)):
        counts = module.Counts(sizes, chain, share * chain(sizes), lowest, step)
        least = [min(size, -(-max(1, int(np.ceil(lowest * size))) // step) * step) for size in sizes]
        grid = [
            [n for n in range(low, size + 1) if n % step == 0 or n == size]
            for low, size in zip(least, sizes.tolist(), strict=True)
        ]
        reached = [()]
        for layer, size in enumerate(sizes.tolist()):
            for prefix in reached:
                actions = tuple(n / s for n, s in zip(prefix, sizes, strict=False))
                low, high = counts.bounds(layer, actions)
                if (round(low * size), round(high * size)) != bounds_by_brute_force(counts, grid, prefix):
                    return False
            reached = [
                (*prefix, n)
                for prefix in reached
                for low, high in [bounds_by_brute_force(counts, grid, prefix)]
                for n in grid[layer]
                if low <= n <= high
            ]
    return True


def test_bounds_against_all_ways_to_go_on():
    assert bounds_are_right(search)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("self._affordable(layer, actions, self.least)", "self._affordable(layer, actions, self.sizes)"),
        ("self._affordable(layer, actions, self.sizes)", "self._affordable(layer, actions, self.least)"),
        ("math.floor(count / self.step + SLACK)", "math.ceil(count / self.step + SLACK)"),
        ("max(1, math.ceil(self.lowest * size - SLACK))", "1"),
    ],
    ids=["all of the rest", "least of the rest", "one more", "no least"],
)
def test_the_oracle_catches_other_bounds(old, new):
    assert not bounds_are_right(mutant(search, old, new))


def test_counts_without_a_goal_and_their_steps():
    counts = Counts(np.array([20, 12]), chain, lowest=0.2, step=8)
    assert counts.bounds(0, ()) == (8 / 20, 1.0) and counts.least.tolist() == [8, 8]
    snapped = [round(counts.snap(0, action) * 20) for action in (0.0, 0.3, 0.41, 0.8, 0.9, 1.0)]
    assert snapped == [8, 8, 8, 16, 20, 20]
    assert counts.of((0.4, 1.0)).tolist() == [8, 12]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Counts(np.array([4, 4, 4]), chain, 0.1 * chain((4, 4, 4)), 0.5), "A budget of 0.1000 of the whole"),
        (lambda: Counts(np.array([4, 4, 4]), chain, lowest=1.5), "At least 1.5 of each layer"),
        (lambda: Counts(np.array([4, 4, 4]), chain, step=0), "in steps of 0"),
        (lambda: search.search(space_of(), value, 0, 0, seed=0), "A search of 0 episodes finds nothing"),
        (lambda: search.search(space_of(), lambda actions: float("nan"), 1, 1, seed=0), "reward nan of a search"),
    ],
)
def test_bad_values(make, words):
    with pytest.raises(UserError, match=words):
        make()


def test_tables_that_do_not_fit():
    with pytest.raises(ValueError, match="3 layers have features, but 2 have costs"):
        search.environment(Space(space_of().features, COSTS[:2], free), Episodes(value))


# -- what a record says ----------------------------------------------------------------------------------------------


def floor(share, size, step, least):
    """The greatest allowed count that is no more than a share (a fraction) of a layer."""
    return size if share == 1 else max(least, int(share * size // step) * step)


def alike_by_brute_force(sizes, least, step, total, limit):
    """The counts at the greatest of all shares whose total is within the limit, or the least ones."""
    shares = sorted({Fraction(n, size) for size in sizes for n in range(size + 1)})
    ways = [[floor(s, size, step, low) for size, low in zip(sizes, least, strict=True)] for s in shares]
    return [way for way in ways if total(way) <= limit][-1]


def uniform_is_the_largest(module):
    """Whether the uniform policy is the largest that costs no more than what was found, for many of those."""
    sizes, rng = [6, 5, 7], np.random.default_rng(0)
    for lowest, step in itertools.product((0.0, 0.2), (1, 2)):
        counts = module.Counts(np.array(sizes), chain, lowest=lowest, step=step)
        least = counts.least.tolist()
        for _ in range(20):
            found = [int(rng.integers(low, size + 1)) for low, size in zip(least, sizes, strict=True)]
            uniform = counts.uniform(tuple(n / size for n, size in zip(found, sizes, strict=True)))
            same = alike_by_brute_force(sizes, least, step, chain, chain(found))
            if uniform != tuple(n / size for n, size in zip(same, sizes, strict=True)):
                return False
    return counts.uniform((1.0, 1.0, 1.0)) == (1.0, 1.0, 1.0)


def test_the_uniform_policy_against_all_shares():
    assert uniform_is_the_largest(search)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("self._down(layer, share / STEPS * size)", "self._up(layer, share / STEPS * size)"),
        ("self._down(layer, share / STEPS * size)", "round(share / STEPS * size)"),
        ("self.total(self.of(actions)) * (1 + SLACK)", "sum(self.of(actions))"),
        ("self.total(counts(share))) - 1", "self.total(counts(share)))"),
    ],
    ids=["rounded up", "no least, no steps", "another cost", "one too many"],
)
def test_the_oracle_catches_another_uniform_policy(old, new):
    assert not uniform_is_the_largest(mutant(search, old, new))


def filters_are_on_record(module):
    """Whether filters that stay are told as shares, beside the widths of one share within the same MACs."""
    net, rng = TinyPlain(channels=(16, 24)), torch.Generator().manual_seed(0)

    def macs(widths):
        first, second = widths
        return 256 * 27 * first + 64 * 9 * first * second + 16 * second * 24 + 24 * 4

    for first, second in ((16, 24), (4, 24), (16, 3), (1, 1), (9, 10)):
        keep = {"features.0": torch.randperm(16, generator=rng) < first, "features.4": torch.arange(24) < second}
        facts = module.of_filters(net, torch.zeros(1, 3, 16, 16), keep, [0.25, 1 / 3])
        same = alike_by_brute_force((16, 24), (1, 1), 1, macs, macs((first, second)))
        if facts != {
            "policy": {"features.0": first / 16, "features.4": second / 24},
            "uniform": {"features.0": same[0] / 16, "features.4": same[1] / 24},
            "rewards": [0.25, 0.333333],
        }:
            return False
    return True


def test_filters_on_record():
    assert filters_are_on_record(search)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("max(0.0, 1 - left)", "max(0.0, 0.5 - left)"),
        ('rounding="keep"', 'rounding="removed"'),
        ("for each in (keep, same))", "for each in (same, keep))"),
    ],
    ids=["another budget", "rounded up", "swapped"],
)
def test_the_oracle_catches_another_record(old, new):
    assert not filters_are_on_record(mutant(search, old, new))


def test_a_found_policy_on_record():
    counts = Counts(np.array([4, 10]), lambda counts: float(sum(counts)))
    found = search.Found((1.0, 0.3), -0.25, [(-0.5, (1.0, 1.0)), (-0.25, (1.0, 0.3))], 2, 1.23456)
    assert found.facts(["a", "b"], counts) == {
        "policy": {"a": 1.0, "b": 0.3}, "uniform": {"a": 0.5, "b": 0.5}, "rewards": [-0.5, -0.25],
        "evaluations": 2, "search_seconds": 1.235,
    }  # fmt: skip


# -- what a state and a reward are made of ---------------------------------------------------------------------------


def test_descriptions():
    example = torch.zeros(1, 3, 16, 16)
    rows = search.describe(TinyPlain(), example, ["features.4", "classifier.1"])
    # index, outputs, inputs, height, width, stride, kernel, MACs
    assert rows.tolist() == [[0, 12, 8, 8, 8, 1, 3, 8 * 8 * 12 * 8 * 9], [1, 24, 192, 1, 1, 0, 1, 24 * 192]]
    strided = search.describe(tiny_resnet(), example, ["layer2.0.conv1"])
    assert strided.tolist() == [[0, 12, 8, 16, 16, 2, 3, 8 * 8 * 12 * 8 * 9]]


def calibrates(module):
    """Whether the statistics are the means over batches of what batch normalisation reads in training."""
    net, batches = TinyPlain(), [(torch.randn(n, 3, 16, 16) + n / 8, None) for n in (8, 6, 1)]
    dense, read = copy.deepcopy(net).train(), {}
    for name, norm in dense.named_modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.register_forward_pre_hook(lambda _, args, name=name: read.setdefault(name, []).append(args[0]))
    with torch.no_grad():
        for x, _ in batches[:2]:
            dense(x)
    module.calibrate(net, iter(batches))
    for name, maps in read.items():
        flat = [m.transpose(0, 1).flatten(1).double().numpy() for m in maps]
        norm = net.get_submodule(name)
        if not np.allclose(norm.running_mean, np.mean([m.mean(1) for m in flat], axis=0), atol=1e-5):
            return False
        if not np.allclose(norm.running_var, np.mean([m.var(1, ddof=1) for m in flat], axis=0), rtol=1e-4):
            return False
    return not any(m.training for m in net.modules()) and net.features[1].momentum == 0.1


def test_calibration():
    assert calibrates(search)
    assert not calibrates(mutant(search, "norm.momentum = None  # the mean of all batches", "norm.momentum = 0.1"))
    assert not calibrates(mutant(search, "norm.train()", "pass"))


def test_without_images_nothing_is_calibrated():
    net = TinyPlain()
    net.features[1].running_mean.fill_(3)
    search.calibrate(net, [])
    assert (net.features[1].running_mean == 3).all()
