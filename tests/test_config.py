from __future__ import annotations

import dataclasses
import math
import re
import textwrap
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import REPOSITORY, Mtrl
from hypothesis import given, settings
from hypothesis import strategies as st

from mtrl.config import Config, load_yaml
from mtrl.files import yaml12
from mtrl.options.validation import validate
from mtrl.schema import ConfigError, dump_yaml, flatten, types_of, with_values
from mtrl.supervised.config import SupervisedConfig
from mtrl.supervised.config import validate as validate_supervised

PRESETS = [
    path
    for path in sorted((REPOSITORY / "configs").glob("*.yaml"))
    if not path.stem.startswith("supervised_")  # test_supervised.py
]


def load(folder: Path, text: str) -> Config:
    path = folder / "config.yaml"
    path.write_text(textwrap.dedent(text))
    return load_yaml(path)


def leaves(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in data.items():
        flat |= (
            leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
    return flat


floats = st.floats(allow_nan=False, allow_infinity=False)


@given(
    name=st.text(max_size=20),
    seed=st.integers(),
    steps=st.integers(0, 10**15),
    lr=floats,
    clip=st.none() | floats,
    options=st.dictionaries(
        st.sampled_from("abc"), floats | st.booleans() | st.lists(floats, max_size=3), max_size=2
    ),
    tasks=st.lists(st.sampled_from(["reach-v3", "on", "1", "null"]), max_size=3).map(tuple),
    workers=st.just("auto") | st.integers(1, 64),
    encoding=st.sampled_from(["one_hot", "none"]),
    norm=st.booleans(),
    smto=st.none() | st.just("pcgrad"),
)
@settings(max_examples=60, deadline=None)
def test_dump_then_load_is_the_identity(
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    seed: int,
    steps: int,
    lr: float,
    clip: float | None,
    options: dict[str, Any],
    tasks: tuple[str, ...],
    workers: Any,
    encoding: Any,
    norm: bool,
    smto: str | None,
) -> None:
    default = Config()
    agent = dataclasses.replace(
        default.agent,
        critic_lr=lr,
        max_grad_norm=clip,
        smto=dataclasses.replace(default.agent.smto, options=options),
        actor_smto=dataclasses.replace(default.agent.actor_smto, name=smto),
    )
    config = dataclasses.replace(
        default,
        name=name,
        seed=seed,
        env=dataclasses.replace(default.env, tasks=tasks, workers=workers),
        train=dataclasses.replace(default.train, total_steps=steps),
        network=dataclasses.replace(default.network, task_encoding=encoding, observation_norm=norm),
        agent=agent,
    )
    path = tmp_path_factory.getbasetemp() / "round_trip.yaml"
    path.write_text(dump_yaml(config))
    again = load_yaml(path)
    assert again == config
    # 1 == 1.0 == True, but a float that comes back as another type would break later.
    flat = flatten(config)
    for key, value in flatten(again).items():
        assert type(value) is type(flat[key]), key


def test_empty_file_gives_the_defaults(tmp_path: Path) -> None:
    assert load(tmp_path, "") == Config()
    assert load(tmp_path, "env:\nagent:\n") == Config()


def test_defaults_are_valid() -> None:
    validate(Config())


def test_there_are_presets() -> None:
    assert {"toy", "smoke"} <= {path.stem for path in PRESETS}


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_preset_is_valid_minimal_and_commented(path: Path) -> None:
    validate(load_yaml(path))
    chosen, defaults = flatten(load_yaml(path)), flatten(Config())
    keys = leaves(yaml.safe_load(path.read_text()))
    as_default = [key for key in keys if chosen[key] == defaults[key]]
    assert not as_default, "a preset holds only what differs from the defaults"
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# "), "the first line says what the preset is for"
    # A comment may cover a block: the lines of one section up to the next may share it.
    for number, line in enumerate(lines):
        if line.startswith("#") or not line.strip() or line.rstrip().endswith(":"):
            continue
        section = re.match(r"\s*", line).group()  # type: ignore[union-attr]
        before = lines[:number]
        covered = "#" in line
        while not covered and before and before[-1].startswith(section) and section:
            covered = "#" in before.pop()
        assert covered, f"{path.name}:{number + 1} has no comment: {line}"


@pytest.mark.parametrize(
    ("text", "key", "also"),
    [
        ("agent: {gama: 0.9}", "agent.gama = 0.9", ["unknown key", "did you mean 'gamma'"]),
        ("agnet: {gamma: 0.9}", "agnet = ", ["unknown key", "did you mean 'agent'"]),
        ("agent: {smto: {nmae: x}}", "agent.smto.nmae = 'x'", ["did you mean 'name'"]),
        ("train: {total_steps: abc}", "train.total_steps = 'abc'", ["an integer"]),
        ("train: {total_steps: 1.5}", "train.total_steps = 1.5", ["an integer"]),
        ("train: {total_steps: true}", "train.total_steps = true", ["an integer"]),
        ("train: {total_steps: null}", "train.total_steps = null", ["an integer"]),
        ("agent: {gamma: true}", "agent.gamma = true", ["a number"]),
        ("agent: {gamma: fast}", "agent.gamma = 'fast'", ["a number"]),
        ("network: {layer_norm: 1}", "network.layer_norm = 1", ["true or false"]),
        ("env: {reward_version: v3}", "env.reward_version = 'v3'", ["v1, v2"]),
        ("env: {workers: many}", "env.workers = 'many'", ["auto", "an integer"]),
        ("env: {tasks: reach-v3}", "env.tasks = 'reach-v3'", ["a list"]),
        ("agent: {betas: [0.9]}", "agent.betas = [0.9]", ["a list of 2 float"]),
        ("agent: {betas: [0.9, 0.9, 0.9]}", "agent.betas = [0.9, 0.9, 0.9]", ["2 float"]),
        ("agent: {smto: {options: [1]}}", "agent.smto.options = [1]", ["a mapping"]),
        ("env: 3", "env = 3", ["mapping"]),
        ("- env", "config = ['env']", ["mapping"]),
        ("env: {horizon: [", "CONFIG = ", ["not valid YAML"]),
    ],
)
def test_bad_yaml_names_key_value_and_what_is_allowed(
    tmp_path: Path, text: str, key: str, also: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    message = str(caught.value)
    assert message.startswith(key)
    assert "\n" not in message
    for part in also:
        assert part in message


def test_numbers_as_people_write_them(tmp_path: Path) -> None:
    config = load(tmp_path, "agent: {actor_lr: 3e-4, tau: 1}\ntrain: {total_steps: 20_000}\n")
    assert config.agent.actor_lr == 0.0003
    assert config.agent.tau == 1.0
    assert type(config.agent.tau) is float
    assert config.train.total_steps == 20_000


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001), ("1E5", 1e5), ("-.5e-3", -0.0005), ("1.", 1.0), ("+3", 3), ("0x1F", 31),
        ("0o17", 15), ("010", 10), ("20_000_000", 20_000_000), ("1_000.5", 1000.5),
        (".inf", math.inf), ("-.INF", -math.inf), ("true", True), ("FALSE", False), ("~", None),
        ("1:30", "1:30"), ("2024-01-01", "2024-01-01"), ("off", "off"), ("yes", "yes"),
        ("None", "None"), ("1__0", "1__0"), ("_1", "_1"), ("1e", "1e"), ("'1e-3'", "1e-3"),
    ],
)  # fmt: skip
def test_plain_words_are_those_of_yaml_1_2_at_any_depth(text: str, value: Any) -> None:
    read = yaml12.parse(f"a: {text}\nb: [[{text}], {{c: {text}}}]\n")
    assert read == {"a": value, "b": [[value], {"c": value}]}
    assert type(read["a"]) is type(value)
    written = yaml12.dump(read)
    assert yaml12.parse(written) == read
    assert yaml.safe_load(written) == read, "readers of YAML 1.1 understand what we write"


@pytest.mark.parametrize(
    "text",
    [
        "train: {total_steps: 100}\nseed: 2\ntrain: {envs_per_task: 1}",
        "agent: {smto: {options: {c: 0.2, 'c': 0.4}}}",
        "agent:\n  gamma: 0.9\n  tau: 0.1\n  gamma: 0.8",
        "env: &env {horizon: 20}\n<<: *env\n<<: *env",
    ],
)
def test_no_key_may_stand_twice(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.yaml.* stands twice, in line \d and in line"):
        load(tmp_path, text)
    merged = "env: &env {horizon: 20, fast: true}\ntrain: {<<: *env, horizon: 30}"
    assert yaml12.parse(merged)["train"] == {"horizon": 30, "fast": True}, "merging is no clash"


@pytest.mark.parametrize("text", ["!!timestamp x", "!!int x", "[" * 3000, "1" * 5000, "? [a]\n: b"])
def test_strange_yaml_is_one_line(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not valid YAML"):
        load(tmp_path, text)


def test_switches_and_missing_values_as_people_write_them(tmp_path: Path) -> None:
    for word in ("off", "Off", "false", "no", "False"):
        config = load(tmp_path, f"learner: {{compile: {word}}}\nnetwork: {{layer_norm: {word}}}")
        assert (config.learner.compile, config.network.layer_norm) == ("off", False)
    for word in ("on", "ON", "true", "yes"):
        config = load(tmp_path, f"learner: {{capture: {word}}}\nnetwork: {{layer_norm: {word}}}")
        assert (config.learner.capture, config.network.layer_norm) == ("on", True)
    for word in ("null", "None", "~", "none", ""):
        config = load(
            tmp_path,
            f"protocol: {word}\nagent: {{max_grad_norm: {word}, chunk_size: {word}, "
            f"critic_smto: {{name: {word}}}}}",
        )
        assert config == dataclasses.replace(Config(), protocol="none")


@pytest.mark.parametrize("word", ["maybe", "null", "1", "None"])
def test_a_wrong_switch_is_told_as_it_was_written(word: str, tmp_path: Path) -> None:
    shown = word if word in ("null", "1") else f"'{word}'"
    with pytest.raises(ConfigError, match=rf"^learner\.compile = {shown}: .*auto, on, off"):
        load(tmp_path, f"learner: {{compile: {word}}}")


@pytest.mark.parametrize("key", ["actor_lr", "tau", "gamma", "max_grad_norm", "actor_l2"])
@pytest.mark.parametrize("value", [".nan", "nan"])
def test_nan_is_never_valid(tmp_path: Path, key: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"agent.{key}"):
        validate(load(tmp_path, f"agent: {{{key}: {value}}}"))


def test_protocol_stamp_shows_every_departure(tmp_path: Path) -> None:
    assert Config().protocol_stamp == "mw-plus"
    modified = load(tmp_path, "env: {horizon: 150, num_goals: 1}").protocol_stamp
    assert modified == "mw-plus modified (env.num_goals=1, env.horizon=150)"
    assert load(tmp_path, "protocol: none\nenv: {horizon: 150}").protocol_stamp == "none"
    kurin = """
        protocol: kurin
        env: {reward_version: v1, num_goals: 1, horizon: 150}
        network: {task_encoding: none}
        agent: {temperature: shared}
        replay: {capacity: 4_000_000}
        train: {warmup_steps: 1500}
    """
    assert load(tmp_path, kurin).protocol_stamp == "kurin"
    other = load(tmp_path, kurin.replace("shared", "per_task")).protocol_stamp
    assert other == "kurin modified (agent.temperature=per_task)"


def test_each_loss_may_have_a_method_of_its_own(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        """
        env: {tasks: [toy-east, toy-west]}
        agent:
          smto: {name: pcgrad}
          actor_smto: {name: fixed, options: {weights: [1, 3]}}
        """,
    )
    assert config.smto_of("critic").name == "pcgrad"
    assert config.smto_of("critic").options == {}
    assert config.smto_of("actor").name == "fixed"
    assert config.smto_of("actor").options == {"weights": [1, 3]}
    assert config.method == "pcgrad+fixed"
    assert config.run_path == Path("runs/run/pcgrad+fixed/seed_1")


def test_override_of_the_method_alone_keeps_no_foreign_weights(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        """
        env: {tasks: [toy-east, toy-west]}
        protocol: none
        agent:
          smto: {name: fixed, options: {weights: [1, 3]}}
          critic_smto: {name: pcgrad}
        """,
    )
    assert config.smto_of("actor").options == {"weights": [1, 3]}
    assert config.smto_of("critic").options == {}, "pcgrad takes no weights"
    validate(config)


SAMPLE_KEYS = [
    "run-dir",
    "overwrite",
    "resume-if-exists",
    "seed",
    "env.benchmark",
    "env.tasks",
    "env.workers",
    "env.horizon",
    "env.num-goals",
    "env.reward-version",
    "train.total-steps",
    "train.warmup-steps",
    "replay.capacity",
    "replay.batch-size",
    "agent.gamma",
    "agent.actor-l2",
    "agent.temperature",
    "agent.updates-per-step",
    "agent.smto.name",
    "network.width",
    "network.depth",
    "network.layer-norm",
    "network.observation-norm",
    "network.task-encoding",
    "learner.device",
    "evaluation.every",
    "evaluation.episodes-per-task",
    "checkpoint.every",
]


@pytest.fixture(scope="module")
def help_text(run_mtrl: Mtrl) -> str:
    done = run_mtrl("train", REPOSITORY / "configs/toy.yaml", "--help")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_help_fits_a_terminal_and_shows_the_options(help_text: str) -> None:
    assert max(map(len, help_text.splitlines())) <= 80
    for key in SAMPLE_KEYS:
        assert re.search(rf"--{re.escape(key)}[ ,]", help_text), key


def test_every_option_is_explained(help_text: str) -> None:
    """Each option's header is followed by words, not only by its default."""
    lines = [line.strip("│ ") for line in help_text.splitlines()]
    explained: dict[str, str] = {}
    key = ""
    for line in lines:
        if option := re.match(r"--([\w.-]+)[ ,]", line):
            key = option[1].replace("-", "_")
            explained[key] = ""
        elif key and not line.startswith("╭"):
            explained[key] += line + " "
    for key in flatten(Config()):
        words = explained[key].split("(default:")[0].split()
        assert len(words) >= 3, f"{key} has no help: {explained[key]!r}"


@pytest.mark.parametrize(
    ("config", "check"), [(Config(), validate), (SupervisedConfig(), validate_supervised)]
)
def test_every_number_is_bounded(config: Any, check: Callable[[Any], None]) -> None:
    """None takes -1 or NaN, but for the logarithms' bounds."""
    check(config)
    for key, kind in types_of(type(config)).items():
        kinds = {kind, *typing.get_args(kind)}
        if not kinds & {int, float} or ".log_std_" in key:
            continue
        for number in (-1, math.nan)[: 1 + (float in kinds)]:
            value = (number, 0.5) if kind == tuple[float, float] else number
            with pytest.raises(ConfigError, match=rf"^{re.escape(key)} = .*must ([a-z]+ )*be"):
                check(with_values(config, {key: value}))


def test_what_is_allowed_is_said_with_the_words_beside_numbers() -> None:
    for key, value, allowed in (
        ("env.workers", 0, "0: must be auto or at least 1"),
        ("critic.width", 0, "0: must be None or at least 1"),
        ("agent.betas", (0.9, 1.0), "(0.9, 1.0): all must be in [0, 1)"),
        ("agent.lr_decay", 1.5, "1.5: must be in [0, 1]"),
        ("agent.actor_lr", math.inf, "inf: must be positive and finite"),
        ("agent.tau", 0.0, "0.0: must be in (0, 1]"),
    ):
        with pytest.raises(ConfigError) as caught:
            validate(with_values(Config(), {key: value}))
        assert str(caught.value) == f"{key} = {allowed}"
    validate(with_values(Config(), {"agent.gamma": 0.0, "agent.tau": 1.0, "agent.lr_decay": 1.0}))
