"""Search for one number per layer by reinforcement learning: the environment, and DDPG on it.

A layer's action is the share of it that stays, in [0, 1]. An episode decides layer after layer and is rewarded once, at
its end. The learning is that of AMC (Y. He et al., ECCV 2018, and its code) on stable-baselines3's DDPG, of which three
things are replaced: how an action is drawn (its noise never sees the mean, which a truncated normal needs), when an
episode is stored (each step with the reward of the end), and the learning rates (one for each network).
"""

from __future__ import annotations

import bisect
import functools
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from baselines.cost import layer_macs
from baselines.errors import UserError
from baselines.task import random_state, set_random_state
from methods.kit import reconstruct, surgery
from methods.kit.features import Site

if TYPE_CHECKING:
    import gymnasium
    from stable_baselines3 import DDPG
    from stable_baselines3.common.buffers import ReplayBuffer

VERSION = 1
HIDDEN = [300, 300]
ACTOR_RATE, CRITIC_RATE = 1e-4, 1e-3
TAU, GAMMA, BATCH, MEMORY = 0.01, 1.0, 64, 100  # MEMORY: transitions kept per layer
SIGMA, DECAY = 0.5, 0.95  # of the exploration, and its factor from episode to episode behind the warm-up
SLACK = 1e-6  # of a unit, for rounding errors
SMOOTHING = 0.5  # of the moving average that is taken off the rewards
STEPS = 10**6  # to which a uniform share is found

Actions = tuple[float, ...]
BatchNorm = nn.modules.batchnorm._BatchNorm


def unchanged(layer: int, action: float) -> float:
    """The default of ``Space.snap``: every number is an action."""
    return action


@dataclass(frozen=True)
class Space:
    """What is decided: n layers in order, and which actions they may take.

    ``features`` (n, k): what is known of each layer beforehand, in any units. ``costs`` (n,): what each costs in full
    (MACs, weights); with it the state tells how much is reduced so far, and how much is still to come. ``bounds(layer,
    actions)``: the lowest and the highest action of the layer behind those of the layers before it. ``snap(layer,
    action)``: the nearest action that the layer can take (whole channels); the bounds are such actions themselves.
    """

    features: np.ndarray
    costs: np.ndarray
    bounds: Callable[[int, Actions], tuple[float, float]]
    snap: Callable[[int, float], float] = unchanged

    def execute(self, actions: Actions, wanted: float) -> float:
        """What the next layer does when ``wanted`` is asked of it, behind ``actions``."""
        layer = len(actions)
        low, high = self.bounds(layer, actions)
        return float(min(max(self.snap(layer, float(wanted)), low), high))


@dataclass(frozen=True)
class Counts:
    """Actions that are whole numbers of units (channels, weights) over the layer's size, within a budget.

    ``sizes`` (n,): all units of each layer. ``total(counts)``: what the network costs with these counts (n,), affine
    and rising in each. ``goal``: the most that it may cost, if there is a limit; UserError when it is out of reach.
    ``lowest``: the share of each layer that stays in any case, at least one unit. ``step``: only its multiples are
    allowed, and whole layers.
    """

    sizes: np.ndarray
    total: Callable[[np.ndarray], float]
    goal: float | None = None
    lowest: float = 0.0
    step: int = 1

    def __post_init__(self) -> None:
        """Refuse settings that no action can meet."""
        if not 0 <= self.lowest <= 1 or self.step < 1:
            raise UserError(
                f"At least {self.lowest} of each layer in steps of {self.step} cannot stay: give a share from 0 to 1, "
                "such as 0.2, and a step of at least 1."
            )
        if self.goal is not None and self.total(self.least) > self.goal * (1 + SLACK):
            whole = self.total(self.sizes)
            raise UserError(
                f"A budget of {self.goal / whole:.4f} of the whole is out of reach: with the least of each layer, a "
                f"share of {self.lowest}, it is {self.total(self.least) / whole:.4f}. Ask for more, or let less stay."
            )

    @functools.cached_property
    def least(self) -> np.ndarray:
        """The fewest units of each layer that may stay: (n,)."""
        wanted = [max(1, math.ceil(self.lowest * size - SLACK)) for size in self.sizes]
        return np.array([min(size, self._step_up(n)) for n, size in zip(wanted, self.sizes, strict=True)], np.int64)

    def of(self, actions: Actions) -> np.ndarray:
        """The counts behind the actions of the first layers."""
        return np.array([round(action * size) for action, size in zip(actions, self.sizes, strict=False)], np.int64)

    def snap(self, layer: int, action: float) -> float:
        """The action rounded to whole units, then up to the next allowed count."""
        return self._up(layer, round(action * self.sizes[layer])) / self.sizes[layer]

    def bounds(self, layer: int, actions: Actions) -> tuple[float, float]:
        """From the lowest action with which the budget can still be spent to the highest with which it can be kept.

        The later layers are taken as whole for the first and at their least for the second. Without a goal: from the
        least to 1.
        """
        if self.goal is None:
            return self.least[layer] / self.sizes[layer], 1.0
        high = self._down(layer, self._affordable(layer, actions, self.least))
        low = self._up(layer, self._affordable(layer, actions, self.sizes))
        return min(low, high) / self.sizes[layer], high / self.sizes[layer]

    def uniform(self, actions: Actions) -> Actions:
        """The largest share, the same for all layers, that costs no more than ``actions`` do: in counts that may be.

        A layer whose least is more than that share has its least.
        """
        limit = self.total(self.of(actions)) * (1 + SLACK)

        def counts(share: int) -> np.ndarray:
            return np.array([self._down(layer, share / STEPS * size) for layer, size in enumerate(self.sizes)])

        largest = bisect.bisect_right(range(STEPS + 1), limit, key=lambda share: self.total(counts(share))) - 1
        return tuple((counts(largest) / self.sizes).tolist())

    def _affordable(self, layer: int, actions: Actions, later: np.ndarray) -> float:
        """How many units of the layer, not rounded, meet the goal when the layers behind it have ``later``."""
        none, whole = (np.array([*self.of(actions), n, *later[layer + 1 :]]) for n in (0, self.sizes[layer]))
        base = self.total(none)
        return (self.goal - base) / (self.total(whole) - base) * self.sizes[layer]

    def _down(self, layer: int, count: float) -> int:
        size = int(self.sizes[layer])
        return max(int(self.least[layer]), size if count >= size else math.floor(count / self.step + SLACK) * self.step)

    def _up(self, layer: int, count: float) -> int:
        return int(min(self.sizes[layer], max(self.least[layer], self._step_up(count))))

    def _step_up(self, count: float) -> int:
        return math.ceil(count / self.step - SLACK) * self.step


@dataclass
class Episodes:
    """What was tried: ``reward(actions)`` is computed once for the same actions; ``history`` is in order."""

    reward: Callable[[Actions], float]
    history: list[tuple[float, Actions]] = field(default_factory=list)
    known: dict[Actions, float] = field(default_factory=dict)

    def finish(self, actions: Actions) -> float:
        """The reward of an episode, which is put on record; UserError when it is no finite number."""
        if actions not in self.known:
            self.known[actions] = float(self.reward(actions))
        if not np.isfinite(self.known[actions]):
            raise UserError(f"The reward {self.known[actions]} of a search is not finite: the network has diverged.")
        self.history.append((self.known[actions], actions))
        return self.known[actions]


@dataclass(frozen=True)
class Found:
    """The best episode (the first of equals), all episodes as (reward, actions as executed), and what they took.

    ``evaluations`` counts distinct actions, that is calls of the reward; ``seconds`` are those of the whole search.
    """

    actions: Actions
    reward: float
    episodes: list[tuple[float, Actions]]
    evaluations: int
    seconds: float

    def facts(self, names: Sequence[str], counts: Counts) -> dict[str, Any]:
        """What a record says of the search: ``on_record``, and what it took."""
        shares = (dict(zip(names, actions, strict=True)) for actions in (self.actions, counts.uniform(self.actions)))
        took = {"evaluations": self.evaluations, "search_seconds": round(self.seconds, 3)}
        return on_record(*shares, [reward for reward, _ in self.episodes]) | took


def on_record(policy: dict[str, float], uniform: dict[str, float], rewards: Sequence[float]) -> dict[str, Any]:
    """What every search puts on record, for its figure.

    ``policy``: the share of each layer that stays; ``uniform``: the shares when all layers are treated alike, at the
    same cost; ``rewards``: those of all episodes (structures), in order.
    """
    return {"policy": policy, "uniform": uniform, "rewards": [round(reward, 6) for reward in rewards]}


def of_filters(
    model: nn.Module, example: torch.Tensor, keep: Mapping[str, torch.Tensor], rewards: Sequence[float]
) -> dict[str, Any]:
    """``on_record`` for a search that keeps these filters of the dense ``model``; the cost is its MACs."""
    macs, found = surgery.module_macs(model, example), surgery.layers(model, example, linear=True)
    left = surgery.macs_left(model, macs, keep, found) / sum(macs.values())
    scores = {name: torch.zeros(len(kept)) for name, kept in keep.items()}
    choose = functools.partial(surgery.select, rounding="keep")
    same, _ = surgery.macs_budget(model, example, scores, max(0.0, 1 - left), choose)
    shares = ({name: float(kept.double().mean()) for name, kept in each.items()} for each in (keep, same))
    return on_record(*shares, rewards)


def search(
    space: Space, reward: Callable[[Actions], float], episodes: int, warmup: int, seed: int, **settings: float
) -> Found:
    """The best of ``episodes`` episodes, the first ``warmup`` of them at random (all of them: random search).

    ``reward(actions)`` -> a finite number, higher is better. ``settings``: ``sigma`` and ``decay`` of the exploration.
    The same seed gives the same episodes, whatever the state of the global generators, which is left as it was. The
    agent learns under ``torch.no_grad`` as well, and the reward is asked for with gradients switched on.
    UserError for less than one episode.
    """
    if episodes < 1:
        raise UserError(f"A search of {episodes} episodes finds nothing: give at least 1.")
    began, before, tried = time.perf_counter(), random_state(), Episodes(reward)
    try:
        with torch.enable_grad():
            agent = ddpg(environment(space, tried), len(space.costs), min(warmup, episodes), seed, **settings)
            agent.learn(episodes * len(space.costs), log_interval=None)
    finally:
        set_random_state(before)
    best = max(tried.history, key=lambda episode: episode[0])
    return Found(best[1], best[0], tried.history, len(tried.known), time.perf_counter() - began)


def environment(space: Space, tried: Episodes) -> gymnasium.Env:
    """One step per layer: observations (k + 3,) in [0, 1], actions (1,) in [0, 1], rewards 0 but for the last.

    Behind the normalised features are the share of all costs that is reduced so far, the share in the layers behind
    this one, and the action of the layer before (1 for the first). ValueError when the shapes do not fit.
    """
    import gymnasium

    count = len(space.costs)
    if len(space.features) != count or not count:
        raise ValueError(f"{len(space.features)} layers have features, but {count} have costs: both need one each.")
    known, costs = normalised(space.features), np.asarray(space.costs, np.float64) / np.sum(space.costs)

    class LayerByLayer(gymnasium.Env):
        metadata = {"render_modes": []}
        observation_space = gymnasium.spaces.Box(0, 1, (known.shape[1] + 3,), np.float32)
        action_space = gymnasium.spaces.Box(0, 1, (1,), np.float32)
        actions: Actions = ()

        def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
            super().reset(seed=seed)
            self.actions = ()
            return self._observe(0), {}

        def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
            self.actions += (space.execute(self.actions, action[0]),)
            done = len(self.actions) == count
            reward = tried.finish(self.actions) if done else 0.0
            return self._observe(min(len(self.actions), count - 1)), reward, done, False, {}

        def _observe(self, layer: int) -> np.ndarray:
            reduced = sum(cost * (1 - action) for cost, action in zip(costs, self.actions, strict=False))
            last = self.actions[-1] if self.actions else 1.0
            state = np.array([*known[layer], reduced, costs[layer + 1 :].sum(), last], np.float32)
            return state.clip(0, 1)

    return LayerByLayer()


def describe(model: nn.Module, example: torch.Tensor, names: Sequence[str]) -> np.ndarray:
    """AMC's fixed numbers of each of these convolutions and linear layers: (layers, 8) float64.

    Index, outputs, inputs, height and width of the input, stride, kernel size, MACs. ``example`` is (1, C, H, W).
    """
    macs, rows = layer_macs(model, example), []
    with reconstruct.inputs(model, {Site(name): lambda x: x.shape for name in names}) as run:
        shapes = run(example[:1])
    for index, name in enumerate(names):
        layer = model.get_submodule(name)
        outputs, inputs, *kernel = layer.weight.shape
        height, width = shapes[Site(name)][2:] or (1, 1)
        size, stride = (kernel[0], layer.stride[0]) if kernel else (1, 0)
        rows.append((index, outputs, inputs, height, width, stride, size, macs[name]))
    return np.array(rows, np.float64)


@torch.no_grad()
def calibrate(model: nn.Module, batches: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Set the statistics of batch normalisation to their means over ``batches``, as a pruned net needs; in place.

    The model is in eval mode afterwards. Batches of one image are left out; without any other, nothing changes.
    """
    model.eval()
    batches = [x for x, _ in batches if len(x) > 1]
    norms = {m: m.momentum for m in model.modules() if isinstance(m, BatchNorm) and m.track_running_stats}
    for norm in norms if batches else ():
        norm.reset_running_stats()
        norm.momentum = None  # the mean of all batches
        norm.train()
    for x in batches:
        model(x)
    for norm, momentum in norms.items():
        norm.momentum = momentum
        norm.eval()


def normalised(features: np.ndarray) -> np.ndarray:
    """Each column of ``features`` (n, k) scaled to [0, 1] from its least to its greatest value; 0 if it is constant."""
    features = np.asarray(features, np.float64)
    low, span = features.min(0), np.ptp(features, axis=0)
    return (features - low) / np.where(span > 0, span, 1)


def truncated_normal(mean: float, sigma: float, generator: np.random.Generator) -> float:
    """A draw from N(mean, sigma^2) given that it lies in [0, 1]; ``mean`` lies there too, so few are thrown away."""
    while not 0 <= (drawn := generator.normal(mean, sigma)) <= 1:
        pass
    return drawn


def ddpg(env: gymnasium.Env, layers: int, warmup: int, seed: int, sigma: float = SIGMA, decay: float = DECAY) -> DDPG:
    """stable-baselines3's agent on ``env``: ``warmup`` random episodes, then one update per step, episode by episode.

    Behind the warm-up an action is drawn from a normal around the actor's, truncated to [0, 1], whose deviation is
    ``sigma`` * ``decay`` ** (episodes since then). What is stored is the action as it was drawn, as in AMC's code.
    """
    from stable_baselines3 import DDPG

    draws = np.random.default_rng(seed)

    class Agent(DDPG):
        def _sample_action(self, learning_starts: int, *args: Any, **kwargs: Any) -> tuple[np.ndarray, np.ndarray]:
            if self.num_timesteps < learning_starts:
                drawn = draws.random()
            else:
                mean = self.predict(self._last_obs)[0].item()
                drawn = truncated_normal(mean, sigma * decay ** (self._episode_num - warmup), draws)
            action = np.full((1, 1), drawn, np.float32)
            return action, self.policy.scale_action(action)

        def _update_learning_rate(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
            for optimizer, rate in zip(optimizers, (ACTOR_RATE, CRITIC_RATE), strict=True):
                for group in optimizer.param_groups:
                    group["lr"] = rate

    return Agent(
        "MlpPolicy",
        env,
        buffer_size=MEMORY * layers,
        learning_starts=warmup * layers,
        batch_size=BATCH,
        tau=TAU,
        gamma=GAMMA,
        train_freq=(1, "episode"),
        gradient_steps=-1,  # as many updates as the episode had steps
        replay_buffer_class=memory(),
        policy_kwargs={"net_arch": HIDDEN},
        seed=seed % 2**32,
        device="cpu",
    )


def memory() -> type[ReplayBuffer]:
    """A replay memory that takes in whole episodes, each step with the reward of the last.

    Of the rewards of a batch it takes off the moving average of the batches' mean rewards, this batch's included.
    """
    from stable_baselines3.common.buffers import ReplayBuffer, ReplayBufferSamples

    class Memory(ReplayBuffer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.steps: list[tuple] = []
            self.average: float | None = None

        def add(self, obs: Any, next_obs: Any, action: Any, reward: np.ndarray, done: np.ndarray, infos: list) -> None:
            self.steps.append((obs, next_obs, action, done, infos))
            if done[0]:
                for seen, then, taken, end, info in self.steps:
                    super().add(seen, then, taken, reward, end, info)
                self.steps.clear()

        def sample(self, batch_size: int, env: Any = None) -> ReplayBufferSamples:
            batch = super().sample(batch_size, env)
            mean = float(batch.rewards.mean())
            self.average = mean if self.average is None else self.average + SMOOTHING * (mean - self.average)
            return batch._replace(rewards=batch.rewards - self.average)

    return Memory
